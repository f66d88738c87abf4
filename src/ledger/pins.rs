//! Pins: the first insert wins, whichever router made it and whatever flags it saw.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::postgres::PgArguments;
use sqlx::postgres::types::PgInterval;
use sqlx::query::Query;
use sqlx::{FromRow, PgExecutor, Postgres, Row};
use uuid::Uuid;

use super::lent::Lent;
use super::{Ledger, LedgerError, within};
use crate::interaction::{Attempt, Envelope, Fence, Interaction, Outcome, Payload, Side, Stage};
use crate::policy::{Doubt, Failure, Policy};

/// What a router asks to have pinned.
#[derive(Debug, Clone, Copy)]
pub struct PinRequest<'a> {
    /// The work.
    pub interaction: &'a Interaction,
    /// What the flags say of its account and kind.
    pub stage: Stage,
    /// Which flags said it.
    pub revision: &'a str,
    /// For how long the router that pinned delivers itself, before the relay does.
    pub grace: Duration,
}

/// The recorded decision which side owns an interaction.
#[derive(Debug, Clone)]
pub struct Pin {
    /// The interaction.
    pub id: Uuid,
    /// When it was pinned.
    pub created_at: DateTime<Utc>,
    /// When it was to run.
    pub run_at: DateTime<Utc>,
    /// The side that executes it.
    pub owner: Side,
    /// The stage it was pinned in.
    pub stage: Stage,
    /// Grows when ownership moves.
    pub epoch: i32,
    /// Its number in the series.
    pub series_no: Option<i64>,
    /// The type of work.
    pub kind: String,
    /// The flags that decided.
    pub flag_revision: String,
    /// SHA-256 of the payload.
    pub payload_hash: Vec<u8>,
    /// Attempts of the owner that have ended.
    pub attempts: i32,
    /// How it ended, when it has.
    pub outcome: Option<Outcome>,
    /// When it ended.
    pub ended_at: Option<DateTime<Utc>>,
    /// Why it ended so, where that is not a success.
    pub reason: Option<String>,
    /// Set where Temporal holds another copy under this id.
    pub conflict: Option<String>,
    /// When somebody first asked to cancel it.
    pub cancel_requested_at: Option<DateTime<Utc>>,
}

/// The answer to a [`PinRequest`].
#[derive(Debug, Clone)]
pub struct Pinned {
    /// The pin: this request's, or the one that was there.
    pub pin: Pin,
    /// Whether this request made it.
    pub created: bool,
    /// Whether its maker should deliver the Temporal copy at once: there is one, and nothing of its series is undelivered.
    pub direct: bool,
    /// Earlier unended members of the series that Postgres owns.
    pub behind: Vec<Uuid>,
}

/// What is known of an account's past.
#[derive(Debug, Clone, FromRow, Serialize)]
pub struct AccountMarks {
    /// The tenant.
    pub account: String,
    /// How far it is on its way to be armed.
    pub state: String,
    /// Since when it has had work that was never pinned.
    pub unpinned_at: Option<DateTime<Utc>>,
    /// Since when Postgres may own its work.
    pub armed_at: Option<DateTime<Utc>>,
}

/// How many unended interactions an account and kind have with an owner.
#[derive(Debug, Clone, FromRow, Serialize)]
pub struct StageCount {
    /// The tenant.
    pub account: String,
    /// The type of work.
    pub kind: String,
    /// Owned by Temporal.
    pub temporal: i64,
    /// Owned by Postgres.
    pub postgres: i64,
}

/// Everything that is recorded of one interaction.
#[derive(Debug, Clone)]
pub struct Story {
    /// The decision.
    pub pin: Pin,
    /// The tenant.
    pub account: String,
    /// The idempotency key.
    pub key: String,
    /// The series.
    pub series: Option<String>,
    /// Where it stands: `scheduled`, `waiting`, `ready`, `running`, or how it ended.
    pub state: String,
    /// Whether its Temporal copy still waits in the outbox.
    pub undelivered: bool,
    /// Attempts of both sides, oldest first.
    pub attempts: Vec<Attempt>,
}

impl Ledger {
    /// Pins in one statement, in a transaction of its own.
    pub async fn pin(&self, request: PinRequest<'_>) -> Result<Pinned, LedgerError> {
        within(async {
            let mut lent = Lent::of(&self.pool).await?;
            let pinned = pin(&mut **lent.connection()?, request).await;
            lent.give_back();
            pinned
        })
        .await
    }

    /// Pins in the caller's transaction.
    pub async fn pin_in(
        &self,
        connection: &mut sqlx::PgConnection,
        request: PinRequest<'_>,
    ) -> Result<Pinned, LedgerError> {
        within(pin(connection, request)).await
    }

    /// Pins many in the caller's transaction, all or none. Of one series, they are pinned in the order given.
    pub async fn pin_many_in(
        &self,
        connection: &mut sqlx::PgConnection,
        requests: &[PinRequest<'_>],
    ) -> Result<Vec<Pinned>, LedgerError> {
        within(pin_many(connection, requests)).await
    }

    /// Whether `id` has a pin.
    pub async fn is_pinned(&self, id: Uuid) -> Result<bool, LedgerError> {
        let pinned = sqlx::query_scalar("select exists (select from crossover.pins where id = $1)").bind(id);
        within(pinned.fetch_one(&self.pool)).await
    }

    /// Asks to start work of `account` without a pin. False: its work must be pinned.
    pub async fn mark_unpinned(&self, account: &str) -> Result<bool, LedgerError> {
        let allowed = sqlx::query_scalar("select crossover.mark_unpinned($1)").bind(account).fetch_one(&self.pool);
        within(allowed).await
    }

    /// Whether copies of the account's series still wait in the outbox: what is started beside them would overtake them.
    pub async fn series_undelivered(&self, account: &str) -> Result<bool, LedgerError> {
        let waiting = sqlx::query_scalar(
            "select exists (select from crossover.outbox o join crossover.pins p on p.id = o.id
                where o.series_id is not null and p.account = $1)",
        );
        within(waiting.bind(account).fetch_one(&self.pool)).await
    }

    /// What is known of the accounts that were ever seen, by name.
    pub async fn accounts(&self) -> Result<Vec<AccountMarks>, LedgerError> {
        let rows =
            sqlx::query_as("select account, state, unpinned_at, armed_at from crossover.accounts order by account");
        within(rows.fetch_all(&self.pool)).await
    }

    /// What is known of one account; none where it was never seen.
    pub async fn account(&self, account: &str) -> Result<Option<AccountMarks>, LedgerError> {
        let row =
            sqlx::query_as("select account, state, unpinned_at, armed_at from crossover.accounts where account = $1");
        within(row.bind(account).fetch_optional(&self.pool)).await
    }

    /// Unended work by account, kind and owner.
    pub async fn unended(&self) -> Result<Vec<StageCount>, LedgerError> {
        let rows = sqlx::query_as(
            "select account, kind, count(*) filter (where owner = 'temporal') as temporal,
                count(*) filter (where owner = 'postgres') as postgres
             from crossover.pins where ended_at is null group by account, kind order by account, kind",
        );
        within(rows.fetch_all(&self.pool)).await
    }

    /// What is known of one account's past; none where it never had work.
    pub async fn marks_of(&self, account: &str) -> Result<Option<AccountMarks>, LedgerError> {
        let row =
            sqlx::query_as("select account, state, unpinned_at, armed_at from crossover.accounts where account = $1");
        within(row.bind(account).fetch_optional(&self.pool)).await
    }

    /// Unended work of one account, by kind.
    pub async fn unended_of(&self, account: &str) -> Result<Vec<StageCount>, LedgerError> {
        let rows = sqlx::query_as(
            "select account, kind, count(*) filter (where owner = 'temporal') as temporal,
                count(*) filter (where owner = 'postgres') as postgres
             from crossover.pins where account = $1 and ended_at is null group by account, kind order by kind",
        );
        within(rows.bind(account).fetch_all(&self.pool)).await
    }

    /// Everything recorded of `id`; none where it was never pinned.
    pub async fn story(&self, id: Uuid) -> Result<Option<Story>, LedgerError> {
        let row = within(
            sqlx::query(
                "select p.*, o.id is not null as undelivered, case
                when p.outcome is not null then p.outcome
                when p.conflict is not null then 'held'
                when k.id is not null then 'unknown_outcome'
                when u.id is not null and u.execute then 'running'
                when s.id is not null and s.execute or e.state = 'later' then 'scheduled'
                when r.id is not null and r.execute then 'ready'
                when p.owner = 'temporal' and o.id is null and p.run_at <= clock_timestamp() then 'running'
                when p.owner = 'temporal' and p.run_at > clock_timestamp() then 'scheduled'
                else 'waiting' end as state
             from crossover.pins p
             left join crossover.outbox o on o.id = p.id
             left join crossover.running u on u.id = p.id
             left join crossover.scheduled s on s.id = p.id
             left join crossover.ready r on r.id = p.id
             left join crossover.parked k on k.id = p.id
             left join crossover.turns e on e.id = p.id
             where p.id = $1",
            )
            .bind(id)
            .fetch_optional(&self.pool),
        )
        .await?;
        let Some(row) = row else { return Ok(None) };
        let pin = pin_of(&row)?;
        let attempts = within(sqlx::query(
            "select *, result::text as result_text from crossover.attempts where id = $1 and ended_at >= $2 order by started_at, side",
        )
            .bind(id)
            .bind(pin.created_at)
            .fetch_all(&self.pool)).await?;
        Ok(Some(Story {
            account: row.try_get("account")?,
            key: row.try_get("key")?,
            series: row.try_get("series")?,
            state: row.try_get("state")?,
            undelivered: row.try_get("undelivered")?,
            attempts: attempts.iter().map(attempt_of).collect::<Result<_, _>>()?,
            pin,
        }))
    }

    /// Holds the Postgres copy of a pin whose Temporal copy is somebody else's: nothing runs until a person has looked.
    /// One that has another epoch by now is let be: what was found speaks of another copy.
    pub async fn hold(&self, (id, epoch): (Uuid, i32), conflict: &str) -> Result<(), LedgerError> {
        within(
            sqlx::query("select crossover.hold($1, $2, $3)").bind(id).bind(epoch).bind(conflict).execute(&self.pool),
        )
        .await?;
        Ok(())
    }
}

/// What an envelope weighs beside payload and policy: its names, and a full `behind`.
const ENVELOPE_WEIGHT: usize = 4_000;

async fn pin(executor: impl PgExecutor<'_>, request: PinRequest<'_>) -> Result<Pinned, sqlx::Error> {
    let sql = "select (f.pin).*, f.created, f.direct, f.behind
         from crossover.pin($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12::json, $13::json, $14, $15) f";
    let bound = Bound::of(request)?;
    pinned_of(&bound.bind_to(sqlx::query(sql)).fetch_one(executor).await?)
}

/// The first fifteen parameters of a pin.
pub(super) struct Bound<'a> {
    request: PinRequest<'a>,
    policy: String,
}

impl<'a> Bound<'a> {
    pub(super) fn of(request: PinRequest<'a>) -> Result<Self, sqlx::Error> {
        let policy = serde_json::to_string(&request.interaction.policy).map_err(|e| sqlx::Error::Encode(e.into()))?;
        Ok(Self { request, policy })
    }

    pub(super) fn bind_to<'q>(&'q self, query: Query<'q, Postgres, PgArguments>) -> Query<'q, Postgres, PgArguments> {
        let (i, request) = (self.request.interaction, &self.request);
        query
            .bind(&i.account)
            .bind(&i.key)
            .bind(&i.kind)
            .bind(request.stage.as_str())
            .bind(request.revision)
            .bind(i.series.as_deref())
            .bind(i.series_id())
            .bind(group_of(i.group.as_deref()))
            .bind(i.priority)
            .bind(i.run_at)
            .bind(i.payload.hash().to_vec())
            .bind(i.payload.get())
            .bind(&self.policy)
            .bind(weight(&i.payload, &self.policy))
            .bind(PgInterval { months: 0, days: 0, microseconds: request.grace.as_micros() as i64 })
    }
}

/// Pins many, all or none, in their order.
async fn pin_many(executor: impl PgExecutor<'_>, requests: &[PinRequest<'_>]) -> Result<Vec<Pinned>, sqlx::Error> {
    let policies = requests.iter().map(|r| serde_json::to_string(&r.interaction.policy));
    let policies: Vec<String> = policies.collect::<Result<_, _>>().map_err(|e| sqlx::Error::Encode(e.into()))?;
    let of = |name: fn(&Interaction) -> &str| requests.iter().map(|r| name(r.interaction)).collect::<Vec<_>>();
    let series: Vec<Option<&str>> = requests.iter().map(|r| r.interaction.series.as_deref()).collect();
    let series_ids: Vec<Option<Uuid>> = requests.iter().map(|r| r.interaction.series_id()).collect();
    let weights = requests.iter().zip(&policies).map(|(r, policy)| weight(&r.interaction.payload, policy));
    let grace = requests.first().map_or(Duration::ZERO, |r| r.grace);
    let rows = sqlx::query(
        "select (f.pin).*, f.created, f.direct, f.behind
         from crossover.pin_runs($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14) f",
    )
    .bind(of(|i| &i.account))
    .bind(of(|i| &i.key))
    .bind(of(|i| &i.kind))
    .bind(requests.iter().map(|r| r.stage.as_str()).collect::<Vec<_>>())
    .bind(requests.iter().map(|r| r.revision).collect::<Vec<_>>())
    .bind(series)
    .bind(series_ids)
    .bind(of(|i| group_of(i.group.as_deref())))
    .bind(requests.iter().map(|r| r.interaction.priority).collect::<Vec<_>>())
    .bind(requests.iter().map(|r| r.interaction.payload.hash().to_vec()).collect::<Vec<_>>())
    .bind(of(|i| i.payload.get()))
    .bind(&policies)
    .bind(weights.collect::<Vec<_>>())
    .bind(PgInterval { months: 0, days: 0, microseconds: grace.as_micros() as i64 })
    .fetch_all(executor)
    .await?;
    rows.iter().map(pinned_of).collect()
}

pub(super) fn pinned_of(row: &sqlx::postgres::PgRow) -> Result<Pinned, sqlx::Error> {
    Ok(Pinned {
        pin: pin_of(row)?,
        created: row.try_get("created")?,
        direct: row.try_get("direct")?,
        behind: row.try_get("behind")?,
    })
}

/// The group that a pin names.
pub(super) fn group_of(group: Option<&str>) -> &str {
    group.unwrap_or("default")
}

/// Bytes of the envelope, about.
pub(super) fn weight(payload: &Payload, policy: &str) -> i32 {
    (ENVELOPE_WEIGHT + payload.get().len() + policy.len()).min(i32::MAX as usize) as i32
}

/// Reads a text column that holds one of an enum's names.
pub(crate) fn named<T>(row: &sqlx::postgres::PgRow, column: &str) -> Result<Option<T>, sqlx::Error>
where
    T: std::str::FromStr<Err = crate::interaction::UnknownName>,
{
    let text: Option<&str> = row.try_get(column)?;
    text.map(str::parse)
        .transpose()
        .map_err(|e| sqlx::Error::ColumnDecode { index: column.to_owned(), source: Box::new(e) })
}

pub(super) fn required<T>(row: &sqlx::postgres::PgRow, column: &str) -> Result<T, sqlx::Error>
where
    T: std::str::FromStr<Err = crate::interaction::UnknownName>,
{
    named(row, column)?.ok_or_else(|| sqlx::Error::ColumnNotFound(column.to_owned()))
}

/// Reads a JSON column that was selected as text.
pub(crate) fn payload(row: &sqlx::postgres::PgRow, column: &str) -> Result<Option<Payload>, sqlx::Error> {
    let text: Option<String> = row.try_get(column)?;
    text.map(Payload::parse).transpose().map_err(|e| sqlx::Error::Decode(e.into()))
}

pub(super) fn pin_of(row: &sqlx::postgres::PgRow) -> Result<Pin, sqlx::Error> {
    Ok(Pin {
        id: row.try_get("id")?,
        created_at: row.try_get("created_at")?,
        run_at: row.try_get("run_at")?,
        owner: required(row, "owner")?,
        stage: required(row, "stage")?,
        epoch: row.try_get("epoch")?,
        series_no: row.try_get("series_no")?,
        kind: row.try_get("kind")?,
        flag_revision: row.try_get("flag_revision")?,
        payload_hash: row.try_get("payload_hash")?,
        attempts: row.try_get("attempts")?,
        outcome: named(row, "outcome")?,
        ended_at: row.try_get("ended_at")?,
        reason: row.try_get("reason")?,
        conflict: row.try_get("conflict")?,
        cancel_requested_at: row.try_get("cancel_requested_at")?,
    })
}

/// Why an attempt did not succeed, from the columns `permanent`, `unknown` and `retry_after_ms`.
pub(crate) fn failure(row: &sqlx::postgres::PgRow) -> Result<Option<Failure>, sqlx::Error> {
    let retry_after: Option<i64> = row.try_get("retry_after_ms")?;
    let retry_after = retry_after.map(|ms| Duration::from_millis(ms as u64));
    let permanent: Option<bool> = row.try_get("permanent")?;
    let unknown: Option<Doubt> = named(row, "unknown")?;
    Ok(permanent.map(|permanent| match unknown {
        Some(cause) => Failure::Unknown { cause },
        None if permanent => Failure::Permanent,
        None => Failure::Retryable { retry_after },
    }))
}

pub(crate) fn attempt_of(row: &sqlx::postgres::PgRow) -> Result<Attempt, sqlx::Error> {
    Ok(Attempt {
        id: row.try_get("id")?,
        side: required(row, "side")?,
        fence: Fence { epoch: row.try_get("epoch")?, attempt: row.try_get("attempt")? },
        rehearsal: row.try_get("rehearsal")?,
        due_at: row.try_get("due_at")?,
        started_at: row.try_get("started_at")?,
        ended_at: row.try_get("ended_at")?,
        outcome: named(row, "outcome")?,
        failure: failure(row)?,
        retry_ms: row.try_get("retry_ms")?,
        result: payload(row, "result_text")?,
        error: row.try_get("error")?,
    })
}

/// The columns of pins `p` and payloads `y` that [`envelope_of`] reads.
pub(crate) const ENVELOPE: &str = "p.id, p.account, p.kind, p.key, p.series, p.series_no, p.grp, p.run_at, p.owner, \
     p.epoch, p.payload_hash, y.payload::text as payload, y.policy::text as policy";

/// Builds the envelope of a pin from a row with the columns of [`ENVELOPE`]; `behind` is the caller's to fill.
pub(crate) fn envelope_of(row: &sqlx::postgres::PgRow) -> Result<Envelope, sqlx::Error> {
    let policy: &str = row.try_get("policy")?;
    let policy: Policy = serde_json::from_str(policy).map_err(|e| sqlx::Error::Decode(e.into()))?;
    let hash: Vec<u8> = row.try_get("payload_hash")?;
    Ok(Envelope {
        id: row.try_get("id")?,
        account: row.try_get("account")?,
        kind: row.try_get("kind")?,
        key: row.try_get("key")?,
        series: row.try_get("series")?,
        series_no: row.try_get("series_no")?,
        group: Some(row.try_get("grp")?),
        run_at: Some(row.try_get("run_at")?),
        policy,
        owner: required(row, "owner")?,
        epoch: row.try_get("epoch")?,
        pinned: true,
        cancelled: false,
        payload_hash: crate::interaction::hex(&hash),
        behind: Vec::new(),
        payload: payload(row, "payload")?.ok_or_else(|| sqlx::Error::ColumnNotFound("payload".to_owned()))?,
    })
}
