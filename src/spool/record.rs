//! The file's format: an opening line, then records of length, checksum, kind and body. What can't be read whole has
//! never been acknowledged, if it is the last; in the middle it is damage.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::interaction::{Interaction, Payload, Stage, interaction_id, series_id};
use crate::policy::Policy;

/// How the file begins.
pub(super) const OPENING: &[u8] = b"crossover spool 1\n";

/// A longer record is none: a request is far smaller.
const LONGEST: usize = 16 << 20;
/// Length and checksum.
const HEAD: usize = 8;

/// An interaction that was started without a pin.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Entry {
    /// The tenant.
    pub account: String,
    /// The type of work.
    pub kind: String,
    /// Its key.
    pub key: String,
    /// The series.
    pub series: Option<String>,
    /// The sub-queue.
    pub group: Option<String>,
    /// Not before this instant.
    pub run_at: Option<DateTime<Utc>>,
    /// Its priority.
    pub priority: i16,
    /// Retries and time-outs.
    pub policy: Policy,
    /// Where its account and kind stood: `off` or `shadow`, for without a pin nothing else can be.
    pub stage: Stage,
    /// The flags that decided.
    pub revision: String,
    /// When it was started, by this machine's clock.
    pub accepted_at: DateTime<Utc>,
    /// What must run.
    pub payload: Payload,
}

impl Entry {
    /// What a router accepts at `now` without a pin.
    pub fn of(interaction: &Interaction, stage: Stage, revision: &str, now: DateTime<Utc>) -> Self {
        let i = interaction.clone();
        Self {
            account: i.account,
            kind: i.kind,
            key: i.key,
            series: i.series,
            group: i.group,
            run_at: i.run_at,
            priority: i.priority,
            policy: i.policy,
            stage: stage.min(Stage::Shadow),
            revision: revision.to_owned(),
            accepted_at: now,
            payload: i.payload,
        }
    }

    /// The same to be pinned: due since it was accepted, for that is when Temporal could begin it.
    pub fn interaction(&self) -> Interaction {
        let e = self.clone();
        Interaction {
            account: e.account,
            kind: e.kind,
            key_made: false,
            after: None,
            exclusive: None,
            key: e.key,
            payload: e.payload,
            series: e.series,
            group: e.group,
            run_at: Some(e.run_at.unwrap_or(e.accepted_at)),
            priority: e.priority,
            policy: e.policy,
        }
    }

    /// The interaction.
    pub fn id(&self) -> Uuid {
        interaction_id(&self.account, &self.key)
    }

    pub(super) fn series_id(&self) -> Option<Uuid> {
        self.series.as_deref().map(|series| series_id(&self.account, &self.kind, series))
    }
}

/// What a record says.
#[derive(Debug)]
pub(super) enum Record {
    /// An entry, under this number.
    Entry(u64, Box<Entry>),
    /// These are taken out.
    Done(Vec<u64>),
    /// From this number on the account (absent: any) has a gap.
    Gap(u64, Option<String>),
    /// Postgres knows of its gaps up to this number.
    Told(u64, Option<String>),
}

/// The body of an entry, which gets its number when it is written.
pub(super) fn entry(entry: &Entry) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(entry)
}

/// A record as it is written.
pub(super) fn frame(kind: u8, no: u64, body: &[u8]) -> Vec<u8> {
    let mut framed = vec![0; HEAD];
    framed.push(kind);
    framed.extend_from_slice(&no.to_le_bytes());
    framed.extend_from_slice(body);
    let (length, sum) = ((framed.len() - HEAD) as u32, crc32fast::hash(&framed[HEAD..]));
    framed[..4].copy_from_slice(&length.to_le_bytes());
    framed[4..HEAD].copy_from_slice(&sum.to_le_bytes());
    framed
}

pub(super) const ENTRY: u8 = b'E';
pub(super) const DONE: u8 = b'D';
pub(super) const GAP: u8 = b'G';
pub(super) const TOLD: u8 = b'T';

/// Reads the record at the head of `bytes`; how long it is. Absent: there is none, or it is not whole.
pub(super) fn read(bytes: &[u8]) -> Option<(Record, usize)> {
    let number = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let (length, sum) = (number(0)? as usize, number(4)?);
    let content = bytes.get(HEAD..HEAD + length).filter(|_| (9..=LONGEST).contains(&length))?;
    if ![ENTRY, DONE, GAP, TOLD].contains(&content[0]) || crc32fast::hash(content) != sum {
        return None;
    }
    let (no, body) = (u64::from_le_bytes(content[1..9].try_into().ok()?), &content[9..]);
    let record = match content[0] {
        ENTRY => Record::Entry(no, serde_json::from_slice(body).ok()?),
        DONE => Record::Done(serde_json::from_slice(body).ok()?),
        GAP => Record::Gap(no, serde_json::from_slice(body).ok()?),
        TOLD => Record::Told(no, serde_json::from_slice(body).ok()?),
        _ => return None,
    };
    Some((record, HEAD + length))
}

/// Whether a whole record begins anywhere in `bytes`: then what stands before it was damaged, not torn.
pub(super) fn any_whole(bytes: &[u8]) -> bool {
    // Two of the longest records: the next whole one is not farther away.
    (1..bytes.len().saturating_sub(HEAD + 8).min(2 * LONGEST)).any(|at| read(&bytes[at..]).is_some())
}
