//! The Temporal half of arming, as far as Postgres keeps it: pins of copies that Temporal has without one, and how far the
//! reconciliation of an account has got.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{FromRow, Row};
use uuid::Uuid;

use super::pins::{group_of, weight};
use super::{Ledger, LedgerError, within};
use crate::interaction::{Envelope, names, series_id, unhex};

names! {
    /// What its pin says to a copy that asks whether it may run.
    Verdict {
        /// The pin is this copy's.
        Own = "own",
        /// It was, and has ended.
        Ended = "ended",
        /// Another side or another epoch owns it.
        Moved = "moved",
        /// The key is pinned with other work, whose copy has another place, or has run.
        Other = "other",
        /// The key is pinned with other work, whose copy can't be beside this one, which came without a pin. That pin is held.
        Another = "another",
        /// Two copies under this key differ, and a person has to look.
        Held = "held",
        /// There is no pin.
        Gone = "gone",
    }
}

/// A copy's question to its pin.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// The copy.
    pub envelope: &'a Envelope,
    /// When it was due, where its envelope doesn't say.
    pub run_at: Option<DateTime<Utc>>,
    /// What the pin shall say of its origin.
    pub revision: &'a str,
    /// A pin is made where there is none. Never for a copy that was pinned: its pin is gone because it has ended.
    pub insert: bool,
    /// A pin that is made is delivered to the copy by the outbox.
    pub deliver: bool,
}

/// The answer.
#[derive(Debug, Clone)]
pub struct Answered {
    /// What the pin says.
    pub verdict: Verdict,
    /// Whether the pin was made by this question.
    pub created: bool,
    /// Attempts that have ended.
    pub attempts: i32,
    /// Why the copy must not run.
    pub reason: Option<String>,
    /// What has to end before it may.
    pub behind: Vec<Uuid>,
}

/// How far the reconciliation of an account has got.
#[derive(Debug, Clone, FromRow, Serialize)]
pub struct Reconciliation {
    /// The tenant.
    pub account: String,
    /// Which arming of it this belongs to.
    pub generation: i64,
    /// When it began.
    pub began_at: DateTime<Utc>,
    /// When Temporal first listed what was started for this.
    pub marker_at: Option<DateTime<Utc>>,
    /// The last pass.
    pub looked_at: Option<DateTime<Utc>>,
    /// When nothing was left.
    pub done_at: Option<DateTime<Utc>>,
    /// Passes so far.
    pub passes: i32,
    /// Open workflows, as the last pass found them.
    pub listed: i64,
    /// Copies without a pin, as the last pass found them.
    pub unpinned: i64,
    /// Pins made for them, by all passes.
    pub pinned: i64,
    /// Copies whose key is somebody else's, as the last pass found them.
    pub refused: i64,
    /// Keys that series still remember.
    pub remembered: i64,
    /// Why the last pass broke off.
    pub error: Option<String>,
}

/// What a pass found and did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pass {
    /// Open workflows.
    pub listed: i64,
    /// Copies without a pin.
    pub unpinned: i64,
    /// Pins made.
    pub pinned: i64,
    /// Copies whose key is somebody else's.
    pub refused: i64,
    /// Keys that series still remember.
    pub remembered: i64,
}

impl Ledger {
    /// Makes or looks at the pin of a copy that Temporal has, see `crossover.reconcile_pin`. Repeating it changes nothing.
    pub async fn ask_pin(&self, question: Question<'_>) -> Result<Answered, LedgerError> {
        let e = question.envelope;
        let policy = serde_json::to_string(&e.policy).map_err(|error| sqlx::Error::Encode(error.into()))?;
        let hash = unhex(&e.payload_hash).unwrap_or_else(|| e.payload.hash().into());
        let asked = sqlx::query(
            "select * from crossover.reconcile_pin($1, $2, $3, $4, $5, $6, $7, $8, $9, $10::json, $11::json, $12, $13, $14, $15)",
        )
        .bind(&e.account)
        .bind(&e.key)
        .bind(&e.kind)
        .bind(e.series.as_deref())
        .bind(e.series.as_deref().map(|series| series_id(&e.account, &e.kind, series)))
        .bind(group_of(e.group.as_deref()))
        .bind(e.run_at.or(question.run_at))
        .bind(e.epoch)
        .bind(hash)
        .bind(e.payload.get())
        .bind(&policy)
        .bind(weight(&e.payload, &policy))
        .bind(question.revision)
        .bind(question.insert)
        .bind(question.deliver);
        let row = within(asked.fetch_one(&self.pool)).await?;
        Ok(Answered {
            verdict: super::named(&row, "verdict")?.unwrap_or(Verdict::Gone),
            created: row.try_get("created")?,
            attempts: row.try_get("attempts")?,
            reason: row.try_get("reason")?,
            behind: row.try_get("behind")?,
        })
    }

    /// The number after which a run made by a reset goes on, in which `before` attempts are known of. None: the pin has ended,
    /// or is not Temporal's under this epoch.
    pub async fn count_anew(&self, id: Uuid, epoch: i32, before: i32) -> Result<Option<i32>, LedgerError> {
        let counted = sqlx::query_scalar("select crossover.count_anew($1, $2, $3)").bind(id).bind(epoch).bind(before);
        within(counted.fetch_one(&self.pool)).await
    }

    /// Those of (id, payload hash in hex) that have a pin, and whether it is Temporal's with that payload.
    pub async fn pins_of_copies(&self, copies: &[(Uuid, String)]) -> Result<Vec<(Uuid, bool)>, LedgerError> {
        let (ids, hashes): (Vec<Uuid>, Vec<String>) = copies.iter().cloned().unzip();
        let rows = sqlx::query_as(
            "select p.id, p.owner = 'temporal' and encode(p.payload_hash, 'hex') = c.hash and p.conflict is null
             from unnest($1::uuid[], $2::text[]) as c (id, hash) join crossover.pins p on p.id = c.id",
        );
        within(rows.bind(ids).bind(hashes).fetch_all(&self.pool)).await
    }

    /// Begins the reconciliation of an account or goes on with it. None: a later one has begun.
    pub async fn begin_reconciliation(
        &self,
        account: &str,
        generation: i64,
    ) -> Result<Option<Reconciliation>, LedgerError> {
        let row = sqlx::query_as("select * from crossover.begin_reconciliation($1, $2)");
        within(row.bind(account).bind(generation).fetch_optional(&self.pool)).await
    }

    /// Notes that the marker is listed; whether it has been for as long as `lag`.
    pub async fn marker_listed(&self, account: &str, generation: i64, lag: Duration) -> Result<bool, LedgerError> {
        let since = sqlx::query_scalar(
            "update crossover.reconciliations set marker_at = coalesce(marker_at, clock_timestamp())
             where account = $1 and generation = $2
             returning marker_at <= clock_timestamp() - $3 * interval '1 millisecond'",
        );
        let since = since.bind(account).bind(generation).bind(lag.as_millis() as i64);
        Ok(within(since.fetch_optional(&self.pool)).await?.unwrap_or(false))
    }

    /// Notes a pass; `last` where nothing is left to do.
    pub async fn reconciled(
        &self,
        account: &str,
        generation: i64,
        pass: &Pass,
        last: bool,
    ) -> Result<Option<Reconciliation>, LedgerError> {
        let row = sqlx::query_as(
            "update crossover.reconciliations set looked_at = clock_timestamp(), passes = passes + 1, listed = $3, unpinned = $4,
                pinned = pinned + $5, refused = $6, remembered = $7, error = null,
                done_at = case when $8 then clock_timestamp() end
             where account = $1 and generation = $2 returning *",
        );
        let row = row.bind(account).bind(generation).bind(pass.listed).bind(pass.unpinned).bind(pass.pinned);
        within(row.bind(pass.refused).bind(pass.remembered).bind(last).fetch_optional(&self.pool)).await
    }

    /// Notes why a pass broke off. The next one begins where it began.
    pub async fn reconciliation_failed(&self, account: &str, generation: i64, why: &str) -> Result<(), LedgerError> {
        let note =
            sqlx::query("update crossover.reconciliations set error = $3 where account = $1 and generation = $2");
        within(note.bind(account).bind(generation).bind(why).execute(&self.pool)).await?;
        Ok(())
    }

    /// How far the reconciliation of an account has got; none where none has begun. For `status`.
    pub async fn reconciliation(&self, account: &str) -> Result<Option<Reconciliation>, LedgerError> {
        let row = sqlx::query_as("select * from crossover.reconciliations where account = $1");
        within(row.bind(account).fetch_optional(&self.pool)).await
    }
}
