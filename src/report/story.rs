//! The whole story of one interaction, also in the middle of it: where it stands, what it waits for, and what was seen of
//! it in the order of time.

mod timeline;

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::FromRow;
use sqlx::types::Json;
use uuid::Uuid;

use crate::flips::{Bearing, DecisionRow, FlipStore};
use crate::interaction::{Payload, When, hex, is_remote};
use crate::ledger::{Ledger, LedgerError, Waits, within};
pub use timeline::Event;

/// Everything that is recorded of one interaction.
#[derive(Debug, Clone, Serialize)]
pub struct Story {
    /// The interaction.
    pub id: Uuid,
    /// Where it stands and whose it is; none where only sightings of it are known.
    pub standing: Option<Standing>,
    /// What it waits for, in a sentence; none where it has ended or runs.
    pub waits_for: Option<String>,
    /// The same for machines, where it waits for its series or for other work.
    pub waits: Option<Waits>,
    /// The decision of a router; none before one was made.
    pub pin: Option<PinPart>,
    /// The changes of its account's and kind's stage that bear on it: the last one before its pin, and the first few until
    /// its end.
    pub decisions: Vec<DecisionRow>,
    /// Its place in its series.
    pub series: Option<Series>,
    /// The Temporal copy, while it is undelivered.
    pub outbox: Option<Outbox>,
    /// Where copies lie on the Postgres side, and rehearsals open on Temporal's.
    pub places: Vec<Place>,
    /// What the comparator makes of it.
    pub observation: Option<Observation>,
    /// What was recorded, in the order of time.
    pub timeline: Vec<Event>,
    /// Its payload and results, where they were asked for.
    pub contents: Option<Contents>,
}

/// From the view `crossover.interactions`.
#[derive(Debug, Clone, FromRow, Serialize)]
pub struct Standing {
    /// The tenant.
    pub account: String,
    /// The type of work.
    pub kind: String,
    /// The idempotency key.
    pub key: String,
    /// The sub-queue.
    pub grp: String,
    /// Higher first.
    pub priority: i16,
    /// One of the view's states.
    pub state: String,
    /// When it was accepted.
    pub accepted_at: DateTime<Utc>,
    /// Not before.
    pub run_at: Option<DateTime<Utc>>,
    /// When its end was known.
    pub ended_at: Option<DateTime<Utc>>,
    /// Attempts of the owner that have ended.
    pub attempts: i32,
    /// Why it ended so, is held, was refused, or could not be pinned yet.
    pub reason: Option<String>,
}

/// The recorded decision.
#[derive(Debug, Clone, Serialize)]
pub struct PinPart {
    /// When it was made.
    pub pinned_at: DateTime<Utc>,
    /// The stage.
    pub stage: String,
    /// The flags that decided.
    pub flag_revision: String,
    /// The side that executes it.
    pub owner: String,
    /// Grows when ownership moves.
    pub epoch: i32,
    /// When it moved last; none where it never did.
    pub moved_at: Option<DateTime<Utc>>,
    /// Whether there is a copy for Temporal.
    pub on_temporal: bool,
    /// Whether there is one for Postgres.
    pub on_postgres: bool,
    /// SHA-256 of the payload.
    pub payload_hash: String,
    /// Its length; none where it is kept no longer.
    pub payload_bytes: Option<i32>,
}

/// Its place in a series.
#[derive(Debug, Clone, FromRow, Serialize)]
pub struct Series {
    /// The series' name.
    pub series: String,
    /// Its number.
    pub no: i64,
    /// The lowest number that has not ended.
    pub head_no: i64,
    /// The highest.
    pub last_no: i64,
    /// Members before it that have not ended; the first few.
    #[sqlx(skip)]
    pub before: Vec<Before>,
}

/// A member of the series that has to end first.
#[derive(Debug, Clone, FromRow, Serialize)]
pub struct Before {
    /// The interaction.
    pub id: Uuid,
    /// Its number.
    pub no: i64,
    /// Its owner.
    pub owner: String,
    /// Where it stands.
    pub state: String,
}

/// A copy that Temporal does not have yet.
#[derive(Debug, Clone, FromRow, Serialize)]
pub struct Outbox {
    /// Since when.
    pub created_at: DateTime<Utc>,
    /// When a relay looks at it.
    pub due_at: DateTime<Utc>,
    /// Deliveries that failed.
    pub tries: i32,
    /// The last failure.
    pub last_error: Option<String>,
}

/// Where a copy lies.
#[derive(Debug, Clone, FromRow, Serialize)]
pub struct Place {
    /// `ready`, `scheduled` or `running` on Postgres; `rehearsing` on Temporal; `away` with its runner, on either.
    pub place: String,
    /// Whether it runs nothing.
    pub rehearsal: bool,
    /// The attempt that it has or will have.
    pub attempt: i32,
    /// When it was or is due.
    pub due_at: DateTime<Utc>,
    /// When a worker took it.
    pub started_at: Option<DateTime<Utc>>,
    /// Until when the worker or the runner has it, unless it renews; a rehearsal on Temporal ends by itself then.
    pub until: Option<DateTime<Utc>>,
    /// The worker.
    pub worker: Option<Uuid>,
}

/// The comparator's row.
#[derive(Debug, Clone, Serialize)]
pub struct Observation {
    /// The verdict.
    pub verdict: String,
    /// Why it is neither matched nor diverged.
    pub reason: Option<String>,
    /// When it was judged.
    pub judged_at: Option<DateTime<Utc>>,
    /// When the comparator looks again.
    pub look_at: Option<DateTime<Utc>>,
    /// What differs.
    pub divergences: Vec<Difference>,
    /// What Temporal did.
    pub temporal: SideSeen,
    /// What Postgres did.
    pub postgres: SideSeen,
}

/// What one side did, by its own clock.
#[derive(Debug, Clone, Serialize)]
pub struct SideSeen {
    /// When Temporal had the copy.
    pub delivered_at: Option<DateTime<Utc>>,
    /// When its first attempt was due.
    pub due_at: Option<DateTime<Utc>>,
    /// When that began.
    pub dequeued_at: Option<DateTime<Utc>>,
    /// When its last attempt ended.
    pub ended_at: Option<DateTime<Utc>>,
    /// Attempts that ended.
    pub attempts: i32,
    /// How the last one ended.
    pub outcome: Option<String>,
}

/// A divergence, and what it means.
#[derive(Debug, Clone, Serialize)]
pub struct Difference {
    /// Its class.
    pub class: String,
    /// The side that is off.
    pub side: Option<String>,
    /// What was seen.
    pub detail: Option<String>,
    /// What the class means.
    pub means: &'static str,
}

/// What may hold secrets, and is read only when asked for.
#[derive(Debug, Clone, Serialize)]
pub struct Contents {
    /// What was to run; none where it is kept no longer.
    pub payload: Option<Payload>,
    /// Results of attempts, by side and attempt.
    pub results: Vec<ResultOf>,
    /// Payloads that a side read otherwise than they were pinned.
    pub misread: Vec<ResultOf>,
}

/// A document of an attempt.
#[derive(Debug, Clone, Serialize)]
pub struct ResultOf {
    /// The side.
    pub side: String,
    /// The attempt.
    pub attempt: i32,
    /// The document.
    pub document: Payload,
}

/// Reads all of it; none where nothing at all is recorded under this id.
pub async fn story(ledger: &Ledger, id: Uuid, with_contents: bool) -> Result<Option<Story>, LedgerError> {
    let asked = Asked { ledger, id };
    let standing = asked.standing().await?;
    let observation = asked.observation().await?;
    let sightings = timeline::sightings(ledger, id).await?;
    if standing.is_none() && observation.is_none() && sightings.is_empty() {
        return Ok(None);
    }
    let pin = asked.pin().await?;
    let decisions = asked.decisions(standing.as_ref(), pin.as_ref()).await?;
    let series = asked.series().await?;
    let outbox = asked.outbox().await?;
    let places = asked.places().await?;
    let attempts = timeline::attempts(ledger, id).await?;
    let mut story = Story {
        id,
        waits_for: None,
        waits: None,
        contents: None,
        timeline: Vec::new(),
        standing,
        pin,
        decisions,
        series,
        outbox,
        places,
        observation,
    };
    story.timeline = timeline::of(&story, &sightings, &attempts);
    if story.standing.as_ref().is_some_and(|standing| standing.state == "waiting") {
        story.waits = ledger.waits(id).await?;
    }
    story.waits_for = waits_for(&story);
    if with_contents {
        story.contents = Some(asked.contents().await?);
    }
    Ok(Some(story))
}

/// What the comparator makes of one interaction; none where it has not taken notice of it.
pub async fn observation(ledger: &Ledger, id: Uuid) -> Result<Option<Observation>, LedgerError> {
    Asked { ledger, id }.observation().await
}

/// The place of what waits for its group.
const GATE: &str = "gate";
/// So many decisions after the pin are told.
const DECISIONS: i64 = 50;

/// What keeps it from going on, in a sentence.
fn waits_for(story: &Story) -> Option<String> {
    let standing = story.standing.as_ref()?;
    let reason = standing.reason.as_deref().unwrap_or("no reason is recorded");
    match standing.state.as_str() {
        "accepted" => {
            let last = standing.reason.as_ref().map(|why| format!("; the last try failed: {why}")).unwrap_or_default();
            Some(format!("a router to pin it{last}"))
        }
        "refused" => Some(format!("somebody to look: it was refused and will never run as it is ({reason})")),
        "held" => Some(format!("somebody to look: Temporal holds another copy under this id ({reason})")),
        "unknown_outcome" => {
            Some(format!("somebody to say what came of it, with `crossover resolve ID --as …` ({reason})"))
        }
        "scheduled" => {
            let due = story
                .places
                .iter()
                .find(|p| p.place == "scheduled" && !p.rehearsal)
                .map(|p| p.due_at)
                .or(standing.run_at);
            due.map(|due| format!("its time, {}", due.format("%F %T%.3f UTC")))
        }
        "running" => story.places.iter().find(|place| place.place == "away").map(|away| {
            let until = away.until.map(|until| until.format("%F %T%.3f UTC").to_string()).unwrap_or_default();
            format!("the runner that took attempt {} away; without a heartbeat it is lost at {until}", away.attempt)
        }),
        "ready" if is_remote(Some(&standing.grp)) => {
            Some(format!("a remote worker that takes from `{}`", standing.grp))
        }
        "ready" => Some("a free slot of a Postgres worker".to_owned()),
        "waiting" => at_the_gate(story).or_else(|| {
            let all = [waits_behind(story), waits_after(story), waits_for_its_turn(story)];
            let all: Vec<String> = all.into_iter().flatten().collect();
            if all.is_empty() { undelivered(story) } else { Some(all.join(", and for ")) }
        }),
        _ => None,
    }
}

/// What the view says is why.
fn at_the_gate(story: &Story) -> Option<String> {
    story.places.iter().find(|place| place.place == GATE && !place.rehearsal)?;
    story.standing.as_ref()?.reason.clone()
}

fn waits_behind(story: &Story) -> Option<String> {
    let series = story.series.as_ref()?;
    let first = series.before.first()?;
    let others = (series.no - series.head_no - 1).max(0);
    let others = if others > 0 { format!(" and up to {others} after it") } else { String::new() };
    Some(format!(
        "number {} of series «{}» ({}, owner {}, {}){others}; it is number {}",
        first.no, series.series, first.id, first.owner, first.state, series.no
    ))
}

fn waits_after(story: &Story) -> Option<String> {
    let waits = story.waits.as_ref().filter(|waits| waits.named > 0)?;
    let named = waits.after.iter().take(3).map(|one| {
        let why = one.reason.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        format!("{} ({}{why})", one.id, one.state)
    });
    let named = named.collect::<Vec<_>>().join(", ");
    let more = waits.after.len().checked_sub(4).map_or("", |_| " and more");
    let which = if waits.when == Some(When::Any) { "one" } else { "each" };
    Some(format!("{which} of {} that have not ended, of {} it runs after: {named}{more}", waits.unended, waits.named))
}

fn waits_for_its_turn(story: &Story) -> Option<String> {
    let waits = story.waits.as_ref()?;
    let exclusive = waits.exclusive.as_ref()?;
    let whose = waits.turn.as_ref().map_or_else(
        || "it is about to be given".to_owned(),
        |turn| {
            let why = turn.reason.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
            format!("it is that of {} ({}{why})", turn.id, turn.state)
        },
    );
    Some(format!("its turn, for no two of exclusive «{exclusive}» run at once; {whose}"))
}

fn undelivered(story: &Story) -> Option<String> {
    let outbox = story.outbox.as_ref()?;
    let error = outbox.last_error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
    Some(format!("its delivery to Temporal; {} tries failed{error}", outbox.tries))
}

/// What a class of divergence means, in a sentence. docs/divergences.md has the whole of it.
pub fn meaning(class: &str) -> &'static str {
    match class {
        "missing" => "one side ran it, the other never began it",
        "extra" => "a side has it that should not",
        "duplicate" => "a side began the same attempt twice",
        "late" => "a side began it later than it should have, after work that was due later",
        "early" => "a side began it before it was due",
        "order" => "a side began a member of a series before its predecessor",
        "overlap" => "a member of a series ran while its predecessor still did",
        "payload" => "a side read another payload than the one that was pinned",
        "attempts" => "the sides made other attempts, or waited otherwise between them",
        "outcome" => "the sides ended otherwise",
        "routing" => "a side's copy names another kind or group than the pin",
        "owner_conflict" => "Temporal holds another copy under this id; the Postgres copy is held",
        "unclaimed_effect" => "a side executed what it does not own: its effect may have happened twice",
        _ => "docs/divergences.md may know more",
    }
}

struct Asked<'a> {
    ledger: &'a Ledger,
    id: Uuid,
}

impl Asked<'_> {
    async fn one<T>(&self, sql: &'static str) -> Result<Option<T>, LedgerError>
    where
        T: for<'r> FromRow<'r, sqlx::postgres::PgRow> + Send + Unpin,
    {
        within(sqlx::query_as(sql).bind(self.id).fetch_optional(self.ledger.pool())).await
    }

    async fn all<T>(&self, sql: &'static str) -> Result<Vec<T>, LedgerError>
    where
        T: for<'r> FromRow<'r, sqlx::postgres::PgRow> + Send + Unpin,
    {
        within(sqlx::query_as(sql).bind(self.id).fetch_all(self.ledger.pool())).await
    }

    async fn standing(&self) -> Result<Option<Standing>, LedgerError> {
        self.one("select * from crossover.interactions where id = $1").await
    }

    async fn pin(&self) -> Result<Option<PinPart>, LedgerError> {
        type Row =
            (DateTime<Utc>, String, String, String, i32, Option<DateTime<Utc>>, bool, bool, Vec<u8>, Option<i32>);
        let row: Option<Row> = self
            .one(
                "select p.created_at, p.stage, p.flag_revision, p.owner, p.epoch, p.moved_at, p.on_temporal, p.on_postgres, p.payload_hash,
                    octet_length(y.payload::text)
                 from crossover.pins p
                 left join crossover.payloads y on y.id = p.id and y.created_at = p.created_at where p.id = $1
                 union all select created_at, 'complete', flag_revision, 'postgres', 1, null, false, true,
                    sha256(convert_to(payload::text, 'UTF8')), octet_length(payload::text) from crossover.tasks where id = $1",
            )
            .await?;
        Ok(row.map(
            |(
                pinned_at,
                stage,
                flag_revision,
                owner,
                epoch,
                moved_at,
                on_temporal,
                on_postgres,
                hash,
                payload_bytes,
            )| {
                let payload_hash = hex(&hash);
                PinPart {
                    pinned_at,
                    stage,
                    flag_revision,
                    owner,
                    epoch,
                    moved_at,
                    on_temporal,
                    on_postgres,
                    payload_hash,
                    payload_bytes,
                }
            },
        ))
    }

    /// A pin alone says by which flags, not who had set them so.
    async fn decisions(
        &self,
        standing: Option<&Standing>,
        pin: Option<&PinPart>,
    ) -> Result<Vec<DecisionRow>, LedgerError> {
        let (Some(standing), Some(pin)) = (standing, pin) else { return Ok(Vec::new()) };
        let bearing = Bearing {
            account: &standing.account,
            kind: &standing.kind,
            revision: &pin.flag_revision,
            pinned_at: pin.pinned_at,
            ended_at: standing.ended_at,
        };
        FlipStore::new(self.ledger.pool().clone()).bearing_on(&bearing, DECISIONS).await
    }

    async fn series(&self) -> Result<Option<Series>, LedgerError> {
        let series: Option<Series> = self
            .one(
                "select s.series, p.series_no as no, s.head_no, s.last_no from crossover.pins p
                 join crossover.series s on s.series_id = p.series_id where p.id = $1",
            )
            .await?;
        let Some(mut series) = series else { return Ok(None) };
        series.before = self
            .all(
                "select b.id, b.series_no as no, b.owner, i.state from crossover.pins p
                 join crossover.series s on s.series_id = p.series_id
                 join crossover.pins b on b.series_id = p.series_id and b.series_no >= s.head_no and b.series_no < p.series_no
                 join lateral (select state from crossover.interactions i where i.id = b.id) i on true
                 where p.id = $1 and p.ended_at is null and b.ended_at is null order by b.series_no limit 5",
            )
            .await?;
        Ok(Some(series))
    }

    async fn outbox(&self) -> Result<Option<Outbox>, LedgerError> {
        self.one("select created_at, due_at, tries, last_error from crossover.outbox where id = $1").await
    }

    async fn places(&self) -> Result<Vec<Place>, LedgerError> {
        self.all(
            "select 'ready' as place, not execute as rehearsal, attempt, due_at, null::timestamptz as started_at,
                null::timestamptz as until, null::uuid as worker from crossover.ready where id = $1
             union all select 'scheduled', not execute, attempt, due_at, null, null, null from crossover.scheduled where id = $1
             union all select 'running', not execute, attempt, due_at, started_at, lease_until, worker
                from crossover.running where id = $1
             union all select 'gate', not execute, attempt, due_at, null, null, null from crossover.gate where id = $1
             union all select case state when 'later' then 'scheduled' else 'line' end, false, attempt, due_at, null, null, null
                from crossover.turns where id = $1 and state in ('later', 'waits')
             union all select 'rehearsing', true, attempt, due_at, dequeued_at, bound_at, null
                from crossover.rehearsals where id = $1
             union all select case when r.worker is null then 'ready' else 'running' end, false, r.attempt, r.due_at, r.started_at,
                w.lease_until, r.worker
                from crossover.tasks t join crossover.tasks_ready r on r.rank = t.rank and r.vt = t.vt and r.id = t.id
                left join crossover.workers w on w.worker = r.worker where t.id = $1
             union all select 'scheduled', false, attempt, due_at, null, null, null from crossover.tasks_scheduled where id = $1
             union all select 'away', false, attempt, due_at, detached_at,
                least(beat_at + silence_ms * interval '1 millisecond', run_until), null
                from crossover.detached where id = $1 and closed_at is null",
        )
        .await
    }

    async fn observation(&self) -> Result<Option<Observation>, LedgerError> {
        let row: Option<ObservationRow> = self.one("select * from crossover.observations where id = $1").await?;
        Ok(row.map(Observation::from))
    }

    async fn contents(&self) -> Result<Contents, LedgerError> {
        type Row = (String, i32, String);
        let document =
            |text: String| Payload::parse(text).map_err(|e| LedgerError::Refused(sqlx::Error::Decode(e.into())));
        let payload: Option<(String,)> = self
            .one(
                "select y.payload::text from crossover.pins p
                 join crossover.payloads y on y.id = p.id and y.created_at = p.created_at where p.id = $1
                 union all select payload::text from crossover.intake where id = $1
                 union all select payload::text from crossover.tasks where id = $1 limit 1",
            )
            .await?;
        let results: Vec<Row> = self
            .all("select side, attempt, result::text from crossover.attempts where id = $1 and result is not null order by ended_at")
            .await?;
        let misread: Vec<Row> = self
            .all("select side, attempt, payload::text from crossover.sightings where id = $1 and payload is not null order by seen_at")
            .await?;
        let of = |rows: Vec<Row>| -> Result<Vec<ResultOf>, LedgerError> {
            let each =
                rows.into_iter().map(|(side, attempt, text)| Ok(ResultOf { side, attempt, document: document(text)? }));
            each.collect()
        };
        let payload = payload.map(|(text,)| document(text)).transpose()?;
        Ok(Contents { payload, results: of(results)?, misread: of(misread)? })
    }
}

/// A row of `crossover.observations`.
#[derive(FromRow)]
struct ObservationRow {
    verdict: String,
    reason: Option<String>,
    judged_at: Option<DateTime<Utc>>,
    look_at: Option<DateTime<Utc>>,
    classes: Vec<String>,
    divergences: Option<Json<Vec<Written>>>,
    temporal_delivered_at: Option<DateTime<Utc>>,
    temporal_due_at: Option<DateTime<Utc>>,
    temporal_dequeued_at: Option<DateTime<Utc>>,
    temporal_ended_at: Option<DateTime<Utc>>,
    temporal_attempts: i32,
    temporal_outcome: Option<String>,
    postgres_due_at: Option<DateTime<Utc>>,
    postgres_dequeued_at: Option<DateTime<Utc>>,
    postgres_ended_at: Option<DateTime<Utc>>,
    postgres_attempts: i32,
    postgres_outcome: Option<String>,
}

/// A divergence as the comparator writes it.
#[derive(serde::Deserialize)]
struct Written {
    class: String,
    side: Option<String>,
    detail: Option<String>,
}

impl From<ObservationRow> for Observation {
    fn from(row: ObservationRow) -> Self {
        let written = row.divergences.map(|written| written.0).unwrap_or_default();
        let bare = row.classes.into_iter().filter(|class| !written.iter().any(|w| w.class == *class));
        let bare: Vec<_> = bare.map(|class| Written { class, side: None, detail: None }).collect();
        let each = written.into_iter().chain(bare);
        Self {
            verdict: row.verdict,
            reason: row.reason,
            judged_at: row.judged_at,
            look_at: row.look_at,
            divergences: each
                .map(|Written { class, side, detail }| Difference { means: meaning(&class), class, side, detail })
                .collect(),
            temporal: SideSeen {
                delivered_at: row.temporal_delivered_at,
                due_at: row.temporal_due_at,
                dequeued_at: row.temporal_dequeued_at,
                ended_at: row.temporal_ended_at,
                attempts: row.temporal_attempts,
                outcome: row.temporal_outcome,
            },
            postgres: SideSeen {
                delivered_at: None,
                due_at: row.postgres_due_at,
                dequeued_at: row.postgres_dequeued_at,
                ended_at: row.postgres_ended_at,
                attempts: row.postgres_attempts,
                outcome: row.postgres_outcome,
            },
        }
    }
}
