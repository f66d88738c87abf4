//! Latencies of pairs in a real Postgres: nothing is lost between comparators, and days, kinds and accounts add up.

use std::time::{Duration, Instant};

use chrono::{Days, NaiveDate, Utc};
use crossover::comparator::latency::storage::{self, Filter};
use crossover::comparator::latency::{Answer, Options, Pair, Timing};
use crossover::config::Config;
use crossover::interaction::Stage;
use crossover::ledger::{self, Ledger};

use crate::servers;

const MONDAY: NaiveDate = NaiveDate::from_ymd_opt(2026, 3, 2).unwrap();
const TUESDAY: NaiveDate = NaiveDate::from_ymd_opt(2026, 3, 3).unwrap();

async fn database() -> Ledger {
    let url = servers::database().await;
    let ledger = Ledger::new(ledger::pool(&url, 10, Duration::from_secs(20)).unwrap());
    ledger.migrate().await.unwrap();
    ledger
}

fn options() -> Options {
    Options { confidence: 0.95, burst: 1, min_pairs: 100, ..Config::defaults().latency }
}

/// A pair whose Postgres copy started `later` seconds after Temporal's.
fn pair(account: &str, kind: &str, day: NaiveDate, later: f64) -> Pair {
    let timing = |start| Timing { start, queueing: start / 2.0, run: 1.0 };
    let (account, kind, stage) = (account.to_owned(), kind.to_owned(), Stage::Shadow);
    Pair { account, kind, stage, day, temporal: timing(0.010), postgres: timing(0.010 + later) }
}

async fn add(ledger: &Ledger, pairs: &[Pair]) {
    let mut tx = ledger.pool().begin().await.unwrap();
    storage::add(&mut tx, pairs, &options()).await.unwrap();
    tx.commit().await.unwrap();
}

fn of(account: &str) -> Filter {
    Filter { account: Some(account.to_owned()), ..Filter::default() }
}

async fn summaries(ledger: &Ledger, filter: &Filter) -> Vec<storage::Summary> {
    storage::read(ledger, filter, &options(), 1_000).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn comparators_that_add_at_once_lose_nothing() {
    const COMPARATORS: usize = 4;
    const BATCHES: usize = 12;
    const ACCOUNTS: usize = 7;
    let ledger = database().await;
    let comparators = (0..COMPARATORS).map(|comparator| {
        let ledger = ledger.clone();
        tokio::spawn(async move {
            for batch in 0..BATCHES {
                // Each begins elsewhere in the accounts, so that without an order they would lock in circles.
                let pairs = (0..ACCOUNTS * 3).map(|n| {
                    let account = format!("account-{}", (n + comparator * 3 + batch) % ACCOUNTS);
                    pair(&account, "sync", MONDAY, if n < ACCOUNTS { 1.0 } else { 0.001 })
                });
                add(&ledger, &pairs.collect::<Vec<_>>()).await;
            }
        })
    });
    for comparator in comparators.collect::<Vec<_>>() {
        comparator.await.unwrap();
    }
    let found = summaries(&ledger, &Filter::default()).await;
    assert_eq!(found.len(), ACCOUNTS);
    for summary in &found {
        let each = (COMPARATORS * BATCHES) as u64;
        assert_eq!((summary.view.pairs, summary.view.test.pairs, summary.view.test.slow), (3 * each, 3 * each, each));
    }
    let total = storage::total(&ledger, &Filter::default(), &options()).await.unwrap();
    assert_eq!(total.pairs, (COMPARATORS * BATCHES * ACCOUNTS * 3) as u64);
}

#[tokio::test]
async fn the_test_goes_on_over_a_change_of_day() {
    let ledger = database().await;
    let good: Vec<_> = (0..80).map(|_| pair("acme", "sync", MONDAY, 0.001)).collect();
    add(&ledger, &good).await;
    let answer = async |filter: &Filter| summaries(&ledger, filter).await.remove(0).view.test.answer;
    assert_eq!(answer(&of("acme")).await, Answer::Inconclusive);
    let next: Vec<_> = good.iter().map(|pair| Pair { day: TUESDAY, ..pair.clone() }).collect();
    add(&ledger, &next).await;
    assert_eq!(answer(&of("acme")).await, Answer::Pass);
    assert_eq!(answer(&Filter { since_day: Some(TUESDAY), ..of("acme") }).await, Answer::Inconclusive);

    // A pair of Monday that was judged on Tuesday counts like any other.
    add(&ledger, &good[..1]).await;
    let found = summaries(&ledger, &of("acme")).await.remove(0);
    assert_eq!((found.first_day, found.last_day, found.view.test.pairs), (MONDAY, TUESDAY, 161));
}

#[tokio::test]
async fn accounts_kinds_and_stages_are_apart_and_add_up_to_one_view() {
    let ledger = database().await;
    let live = Pair { stage: Stage::Live, ..pair("acme", "sync", MONDAY, 0.3) };
    add(&ledger, &[pair("acme", "sync", MONDAY, 0.1), pair("acme", "action", TUESDAY, 0.2), live]).await;
    add(&ledger, &[pair("zeta", "sync", MONDAY, -0.005)]).await;

    let found = summaries(&ledger, &Filter::default()).await;
    let names: Vec<_> = found.iter().map(|s| (s.account.as_str(), s.kind.as_str(), s.stage)).collect();
    let (live, shadow) = (Stage::Live, Stage::Shadow);
    assert_eq!(
        names,
        [("acme", "action", shadow), ("acme", "sync", live), ("acme", "sync", shadow), ("zeta", "sync", shadow)]
    );
    assert_eq!(storage::read(&ledger, &Filter::default(), &options(), 2).await.unwrap(), found[..2]);
    let narrow = Filter { kind: Some("sync".to_owned()), stage: Some(shadow), ..of("acme") };
    assert_eq!(summaries(&ledger, &narrow).await, found[2..3]);

    let all = storage::total(&ledger, &Filter::default(), &options()).await.unwrap();
    assert_eq!((all.pairs, all.test.pairs, all.test.slow), (4, 4, 3));
    let later = all.later.unwrap();
    assert!((later.max - 0.3).abs() < 1e-9 && (later.p50 - 0.1).abs() < 0.002, "{later:?}");
    let acme = storage::total(&ledger, &of("acme"), &options()).await.unwrap();
    assert_eq!(acme.pairs, 3);
}

#[tokio::test]
async fn what_is_rolled_back_is_not_counted() {
    let ledger = database().await;
    add(&ledger, &[pair("acme", "sync", MONDAY, 0.0)]).await;
    let mut tx = ledger.pool().begin().await.unwrap();
    storage::add(&mut tx, &[pair("acme", "sync", MONDAY, 9.0), pair("acme", "other", MONDAY, 9.0)], &options())
        .await
        .unwrap();
    tx.rollback().await.unwrap();
    add(&ledger, &[]).await;
    let found = summaries(&ledger, &Filter::default()).await;
    assert_eq!((found.len(), found[0].view.pairs, found[0].view.test.slow), (1, 1, 0));
}

#[tokio::test]
async fn a_row_that_cannot_be_read_is_named_and_left_as_it_is() {
    let ledger = database().await;
    add(&ledger, &[pair("acme", "sync", MONDAY, 0.0)]).await;
    let broken = "update crossover.latencies set sketches = '{\"temporal\": 3}' returning sketches::text";
    let text: String = sqlx::query_scalar(broken).fetch_one(ledger.pool()).await.unwrap();
    let mut tx = ledger.pool().begin().await.unwrap();
    let pairs = [pair("acme", "sync", MONDAY, 0.0), pair("zeta", "sync", MONDAY, 0.0)];
    let error = storage::add(&mut tx, &pairs, &options()).await.unwrap_err().to_string();
    assert!(error.contains("\"acme\"") && error.contains("2026-03-02") && error.contains("delete this row"), "{error}");
    drop(tx);
    let rows: Vec<String> =
        sqlx::query_scalar("select sketches::text from crossover.latencies").fetch_all(ledger.pool()).await.unwrap();
    assert_eq!(rows, [text]);
}

#[tokio::test]
async fn days_older_than_is_kept_are_forgotten() {
    let ledger = database().await;
    let today = Utc::now().date_naive();
    let days: Vec<_> = [0, 1, 29, 40].map(|ago| today - Days::new(ago)).into();
    add(&ledger, &days.iter().map(|day| pair("acme", "sync", *day, 0.0)).collect::<Vec<_>>()).await;
    assert_eq!(storage::forget(&ledger, Duration::from_secs(30 * 86_400)).await.unwrap(), 1);
    let found = summaries(&ledger, &Filter::default()).await.remove(0);
    assert_eq!((found.first_day, found.view.pairs), (days[2], 3));
}

#[tokio::test]
async fn the_query_in_the_docs_runs() {
    let page = include_str!("../../docs/comparison.md");
    let query = page.split("```sql\n").nth(1).unwrap().split("```").next().unwrap();
    let rows = sqlx::query(sqlx::AssertSqlSafe(query)).fetch_all(database().await.pool()).await.unwrap();
    assert_eq!(rows.len(), 1);
}

/// Not a promise: prints what this machine does now.
#[tokio::test]
#[ignore = "a measurement; run it by name with --nocapture"]
async fn pairs_a_second() {
    let ledger = database().await;
    for (batch, accounts) in [(1_000, 1), (1_000, 50), (1_000, 1_000), (100, 10)] {
        let pairs: Vec<_> = (0..batch)
            .map(|n| pair(&format!("account-{}", n % accounts), "sync", MONDAY, f64::from(n) * 1e-4))
            .collect();
        add(&ledger, &pairs).await;
        let (began, mut rounds) = (Instant::now(), 0);
        while began.elapsed() < Duration::from_secs(5) {
            add(&ledger, &pairs).await;
            rounds += 1;
        }
        let rate = f64::from(rounds * batch) / began.elapsed().as_secs_f64();
        println!("{batch} pairs a batch, {accounts} accounts: {rate:.0} pairs/s");
    }
}
