//! Each step of the way, and what may come between two, in Postgres alone.

use std::time::Instant;

use crossover::ledger::{self, Ledger};
use sqlx::postgres::types::PgInterval;
use sqlx::{PgPool, Postgres, Transaction};
use uuid::Uuid;

use super::*;
use crate::servers;

const HOUR: PgInterval = PgInterval { months: 0, days: 0, microseconds: 3_600_000_000 };
const NOW: PgInterval = PgInterval { months: 0, days: 0, microseconds: 0 };

/// A database of its own, with account `a`.
struct Steps {
    pool: PgPool,
}

impl Steps {
    async fn new() -> Self {
        let pool = ledger::pool(&servers::database().await, 5, Duration::from_secs(10)).unwrap();
        Ledger::new(pool.clone()).migrate().await.unwrap();
        crate::guards::take_out_what_is_missing(&pool).await;
        Self { pool }
    }

    async fn begin(&self, stage: &str) -> String {
        let begun = sqlx::query_scalar("select (crossover.begin_arming('a', $1, null)).state").bind(stage);
        begun.fetch_one(&self.pool).await.unwrap()
    }

    async fn beat(&self, router: Uuid, fails_open: bool) -> Result<bool, sqlx::Error> {
        let beat =
            "select fresh from crossover.process_beat($1, 'r', '{router}', $2, 0, 0, null, 'file:1', now(), '{}')";
        sqlx::query_scalar(beat).bind(router).bind(fails_open).fetch_one(&self.pool).await
    }

    async fn generation(&self) -> i64 {
        sqlx::query_scalar("select generation from crossover.accounts").fetch_one(&self.pool).await.unwrap()
    }

    async fn state(&self) -> String {
        sqlx::query_scalar("select state from crossover.accounts").fetch_one(&self.pool).await.unwrap()
    }

    async fn acknowledge(&self, router: Uuid, generation: i64) {
        let acked = sqlx::query("insert into crossover.arming_acks (account, generation, router) values ('a', $2, $1)");
        acked.bind(router).bind(generation).execute(&self.pool).await.unwrap();
    }

    async fn advance(&self, window: PgInterval) -> Option<String> {
        self.try_advance(self.generation().await, window).await.unwrap()
    }

    async fn try_advance(&self, generation: i64, window: PgInterval) -> Result<Option<String>, sqlx::Error> {
        let moved = sqlx::query_scalar("select crossover.advance('a', $1, $2)").bind(generation).bind(window);
        moved.fetch_one(&self.pool).await
    }

    async fn forget(&self, router: Uuid, disk_gone: bool) -> String {
        let forgotten = sqlx::query_scalar("select crossover.forget_router($1, $2)").bind(router).bind(disk_gone);
        forgotten.fetch_one(&self.pool).await.unwrap()
    }

    async fn sql(&self, sql: &'static str) {
        sqlx::query(sql).execute(&self.pool).await.unwrap();
    }

    async fn mark(&self) -> bool {
        sqlx::query_scalar("select crossover.mark_unpinned('a')").fetch_one(&self.pool).await.unwrap()
    }

    /// Someone who pins, and does not commit yet.
    async fn pinning(&self) -> Transaction<'static, Postgres> {
        let mut transaction = self.pool.begin().await.unwrap();
        pin(&mut transaction, "shadow").await.unwrap();
        transaction
    }
}

async fn pin(transaction: &mut Transaction<'static, Postgres>, stage: &str) -> Result<String, sqlx::Error> {
    sqlx::query_scalar(
        "select (f.pin).owner from crossover.pin('a', $2, 'k', $1, 'file:1', null, null, 'default', 0::smallint, null,
            sha256('1'), '1', '{}', 100, interval '1 second') f",
    )
    .bind(stage)
    .bind(Uuid::new_v4().to_string())
    .fetch_one(&mut **transaction)
    .await
}

fn said(first: &str, then: &str) -> (String, String) {
    (first.to_owned(), then.to_owned())
}

#[tokio::test]
async fn an_acknowledgement_of_an_earlier_state_is_worth_nothing() {
    let (steps, router) = (Steps::new().await, Uuid::new_v4());
    steps.beat(router, true).await.unwrap();
    assert_eq!(steps.begin("live").await, "pinning");
    assert_eq!(steps.advance(NOW).await, None);
    steps.acknowledge(router, steps.generation().await).await;
    assert_eq!(steps.advance(NOW).await.as_deref(), Some("window"));
    assert_eq!(steps.advance(NOW).await.as_deref(), Some("closing"));
    let late = steps.generation().await - 2;
    steps.acknowledge(router, late).await;
    assert_eq!(steps.advance(NOW).await, None, "that was of pinning");
    assert_eq!(steps.try_advance(late, NOW).await.unwrap(), None, "and a driver that is behind moves nothing");
    steps.acknowledge(router, steps.generation().await).await;
    assert_eq!(steps.advance(NOW).await.as_deref(), Some("reconciling"));
}

#[tokio::test]
async fn a_process_that_was_forgotten_and_comes_back_has_acknowledged_nothing() {
    let (steps, router) = (Steps::new().await, Uuid::new_v4());
    assert!(steps.beat(router, true).await.unwrap());
    assert!(!steps.beat(router, true).await.unwrap());
    steps.begin("shadow").await;
    steps.acknowledge(router, steps.generation().await).await;
    steps.sql("update crossover.routers set ended_at = now()").await;
    assert!(steps.beat(router, true).await.unwrap(), "it is to read everything anew");
    assert_eq!(steps.advance(NOW).await, None);
}

#[tokio::test]
async fn closing_goes_back_to_its_window_when_the_flags_no_longer_want_it_live() {
    let steps = Steps::new().await;
    steps.beat(Uuid::new_v4(), true).await.unwrap();
    steps
        .sql("insert into crossover.standings (account, kind, stage, revision) values ('a', '', 'live', 'file:1')")
        .await;
    assert!(steps.mark().await);
    steps.begin("live").await;
    steps.sql("update crossover.routers set ended_at = now()").await;
    assert_eq!(steps.advance(HOUR).await.as_deref(), Some("window"));
    assert_eq!(steps.advance(HOUR).await, None, "it has an unpinned past");
    steps.sql("update crossover.accounts set window_from = now() - interval '2 hours', wants_live_at = now() - interval '2 hours'").await;
    steps.beat(Uuid::new_v4(), true).await.unwrap();
    assert_eq!(steps.advance(HOUR).await.as_deref(), Some("closing"));
    steps.sql("update crossover.standings set stage = 'shadow'").await;
    assert_eq!(steps.advance(HOUR).await.as_deref(), Some("window"));
    steps.sql("update crossover.standings set stage = 'live'").await;
    assert_eq!(steps.advance(HOUR).await.as_deref(), Some("closing"), "its window is as long over as it was");
}

#[tokio::test]
async fn what_was_lost_unpinned_starts_the_window_again_and_takes_closing_back() {
    let steps = Steps::new().await;
    steps.begin("shadow").await;
    steps.advance(NOW).await;
    steps.sql("select (crossover.begin_arming('a', 'shadow', 'ana')).state").await;
    steps.beat(Uuid::new_v4(), true).await.unwrap();
    assert_eq!(steps.advance(HOUR).await.as_deref(), Some("closing"), "never unpinned: no window");
    steps.sql("select crossover.lost_unpinned('a')").await;
    assert_eq!((steps.state().await.as_str(), steps.advance(HOUR).await), ("window", None));
}

#[tokio::test]
async fn a_registration_that_fails_open_and_arming_on_the_spot_see_each_other() {
    let steps = Steps::new().await;
    let mut arming = steps.pool.begin().await.unwrap();
    assert_eq!(pin(&mut arming, "live").await.unwrap(), "postgres", "on the spot");
    let registering = steps.beat(Uuid::new_v4(), true);
    let mut registering = std::pin::pin!(registering);
    let waits = tokio::time::timeout(Duration::from_millis(500), &mut registering).await;
    assert!(waits.is_err(), "it waits, or it would read an account that is not armed yet");
    arming.commit().await.unwrap();
    assert!(registering.await.unwrap());
    // And with it there nobody is armed on the spot any more.
    let mut other = steps.pool.begin().await.unwrap();
    let owner: String = sqlx::query_scalar(
        "select (f.pin).owner from crossover.pin('b', 'x', 'k', 'live', 'file:1', null, null, 'default', 0::smallint, null,
            sha256('1'), '1', '{}', 100, interval '1 second') f",
    )
    .fetch_one(&mut *other)
    .await
    .unwrap();
    assert_eq!(owner, "temporal");
}

#[tokio::test]
async fn a_step_that_finds_the_account_busy_gives_up_soon() {
    let steps = Steps::new().await;
    steps.begin("shadow").await;
    let busy = steps.pinning().await;
    let began = Instant::now();
    let refused = steps.try_advance(steps.generation().await, NOW).await.unwrap_err();
    assert_eq!(refused.as_database_error().unwrap().code().as_deref(), Some("55P03"));
    assert!(began.elapsed() < Duration::from_millis(1_500), "pins queue behind it: {:?}", began.elapsed());
    drop(busy);
    assert_eq!(steps.advance(NOW).await.as_deref(), Some("window"));
}

#[tokio::test]
async fn a_transaction_that_reads_an_old_snapshot_does_not_pin_by_a_state_that_has_passed() {
    let steps = Steps::new().await;
    assert_eq!(steps.begin("live").await, "armed");
    let mut old = steps.pool.begin().await.unwrap();
    sqlx::query("set transaction isolation level repeatable read").execute(&mut *old).await.unwrap();
    sqlx::query("select 1").execute(&mut *old).await.unwrap();
    steps.sql("select (crossover.begin_disarming('a')).state").await;
    assert_eq!(steps.state().await, "disarming");
    let refused = pin(&mut old, "live").await.unwrap_err();
    assert_eq!(refused.as_database_error().unwrap().code().as_deref(), Some("40001"));
    drop(old);
    let mut now = steps.pool.begin().await.unwrap();
    assert_eq!(pin(&mut now, "live").await.unwrap(), "temporal");
}

#[tokio::test]
async fn only_an_open_account_takes_the_mark_and_arming_ends_its_unpinned_past() {
    let steps = Steps::new().await;
    assert!(steps.mark().await && steps.mark().await);
    steps.begin("live").await;
    assert!(!steps.mark().await, "pinning");
    assert_eq!(steps.advance(NOW).await.as_deref(), Some("window"));
    assert_eq!(steps.advance(NOW).await.as_deref(), Some("closing"));
    assert_eq!(steps.advance(NOW).await.as_deref(), Some("reconciling"));
    steps
        .sql("select crossover.reconciled('a', generation, true, 0, null, interval '1 second') from crossover.accounts")
        .await;
    assert_eq!(steps.state().await, "armed");
    let past: bool = sqlx::query_scalar(
        "select unpinned from crossover.stages union all select unpinned_at is not null from crossover.accounts",
    )
    .fetch_one(&steps.pool)
    .await
    .unwrap();
    assert!(!past && !steps.mark().await);
}

#[tokio::test]
async fn a_reconciliation_whose_process_died_is_taken_by_another_when_its_time_is_up() {
    let steps = Steps::new().await;
    steps.begin("shadow").await;
    steps.sql("update crossover.accounts set state = 'reconciling'").await;
    let take = async || {
        let taken = "select coalesce(crossover.take_reconciliation('a', generation, interval '300 milliseconds'), false) from crossover.accounts";
        sqlx::query_scalar::<_, bool>(taken).fetch_one(&steps.pool).await.unwrap()
    };
    assert!(take().await);
    assert!(!take().await, "somebody is at it");
    until("its time is up", async || take().await.then_some(())).await;
}

#[tokio::test]
async fn once_a_router_is_forgotten_that_could_start_work_without_a_pin_every_account_waits_for_a_whole_window() {
    let (steps, router) = (Steps::new().await, Uuid::new_v4());
    steps.beat(router, true).await.unwrap();
    assert_eq!(steps.begin("live").await, "pinning");
    steps.acknowledge(router, steps.generation().await).await;
    assert_eq!(steps.advance(HOUR).await.as_deref(), Some("window"));
    assert_eq!(steps.advance(HOUR).await.as_deref(), Some("closing"), "it has no unpinned past");
    assert_eq!((steps.forget(router, true).await, steps.forget(router, true).await), said("forgotten", "unknown"));
    assert_eq!(steps.advance(HOUR).await.as_deref(), Some("window"), "nobody is left to wait for, and still");
    assert_eq!(steps.advance(HOUR).await, None);
    steps.sql("update crossover.blind_spots set at = at - interval '1 hour'").await;
    assert_eq!(steps.advance(HOUR).await.as_deref(), Some("closing"));
}

#[tokio::test]
async fn what_nobody_knew_is_not_armed_on_the_spot_after_a_router_was_forgotten_unless_that_never_failed_open() {
    for (fails_open, begun) in [(true, "pinning"), (false, "armed")] {
        let (steps, router) = (Steps::new().await, Uuid::new_v4());
        steps.beat(router, fails_open).await.unwrap();
        assert_eq!(steps.forget(router, true).await, "forgotten");
        assert_eq!(steps.begin("live").await, begun);
    }
}

#[tokio::test]
async fn a_process_is_forgotten_once_its_disk_is_too_old_or_gone() {
    let (steps, router) = (Steps::new().await, Uuid::new_v4());
    let beat = async || {
        let beat = "select fresh from crossover.process_beat($1, 'r', '{router}', true, 0, 0, null, 'file:1', now(), '{}', '1 hour')";
        sqlx::query_scalar::<_, bool>(beat).bind(router).fetch_one(&steps.pool).await.unwrap()
    };
    beat().await;
    // An hour, a tenth of it and five seconds for clocks.
    steps.sql("update crossover.routers set beat_at = clock_timestamp() - interval '66 minutes'").await;
    assert_eq!(steps.forget(router, false).await, "disk");
    assert!(!beat().await, "nothing was changed");
    steps.sql("update crossover.routers set beat_at = clock_timestamp() - interval '66 minutes 6 seconds'").await;
    assert_eq!(steps.forget(router, false).await, "forgotten");
    assert!(beat().await, "it is to read everything anew");
    assert_eq!((steps.forget(router, false).await, steps.forget(router, true).await), said("disk", "forgotten"));
}

#[tokio::test]
async fn a_process_of_the_version_before_is_forgotten_only_with_its_disk() {
    let (steps, router) = (Steps::new().await, Uuid::new_v4());
    steps.beat(router, true).await.unwrap();
    steps.sql("update crossover.routers set beat_at = clock_timestamp() - interval '1 year'").await;
    assert_eq!((steps.forget(router, false).await, steps.forget(router, true).await), said("disk", "forgotten"));
}
