//! Reads what a report is made of: pins, the comparator's rows, and latencies. One snapshot, read only.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::postgres::PgRow;
use sqlx::{FromRow, PgConnection, Postgres, Row, Transaction};

use super::verdict::share;
use super::{Bounds, Comparator, Evidence, Found, Latency, Line, Quantiles, Report, SideLatency, Total, judge};
use crate::comparator::latency;
use crate::config::Config;
use crate::interaction::Stage;
use crate::ledger::{Ledger, LedgerError};

/// What a report is asked about. What is absent does not narrow.
#[derive(Debug, Clone)]
pub struct Question {
    /// Of this account.
    pub account: Option<String>,
    /// Of this kind.
    pub kind: Option<String>,
    /// Pinned in this stage.
    pub stage: Option<Stage>,
    /// Pinned within so long.
    pub since: Duration,
    /// So many lines at most.
    pub limit: usize,
}

/// A report reads every row of its period, and may take so long.
const PATIENCE: Duration = Duration::from_secs(120);
/// So many examples of a class.
const EXAMPLES: usize = 3;

/// Accounts, kinds and stages.
type Key = (String, String, String);

/// Reads and judges.
pub async fn read(ledger: &Ledger, config: &Config, question: &Question) -> Result<Report, LedgerError> {
    let reading = tokio::time::timeout(PATIENCE, gather(ledger, config, question));
    let late = |_| LedgerError::InDoubt(format!("no answer within {PATIENCE:?}; ask for a shorter time with --since"));
    reading.await.map_err(late)?
}

async fn gather(ledger: &Ledger, config: &Config, question: &Question) -> Result<Report, LedgerError> {
    let mut tx = snapshot(ledger).await?;
    let at: DateTime<Utc> = sqlx::query_scalar("select clock_timestamp()").fetch_one(&mut *tx).await?;
    let since = TimeDelta::from_std(question.since).ok().and_then(|back| at.checked_sub_signed(back));
    let asked = Asked { question, since: since.unwrap_or(DateTime::UNIX_EPOCH), age: config.report.in_flight_age };
    let comparator = comparator(&mut tx).await?;
    let counts = asked.counts(&mut tx).await?;
    let mut found = asked.found(&mut tx).await?;
    let one_sided = asked.one_sided(&mut tx).await?;
    drop(tx);
    let mut latencies = asked.latencies(ledger, config).await?;
    let judging = Judging {
        bounds: Bounds {
            min_samples: config.report.min_samples.into(),
            // Of what is compared at all.
            min_coverage: config.report.min_coverage * config.comparator.sample,
            in_flight_age: humantime::format_duration(config.report.in_flight_age).to_string(),
        },
        comparator: away(comparator.as_ref(), config.report.comparator_lag),
    };
    let line = |counts: Counts| {
        let key = (counts.account.clone(), counts.kind.clone(), counts.stage.clone());
        judging.line(counts, found.remove(&key).unwrap_or_default(), latencies.remove(&key))
    };
    let mut lines: Vec<Line> = counts.into_iter().map(line).collect();
    lines.sort_by(|a, b| {
        b.pinned.cmp(&a.pinned).then_with(|| (&a.account, &a.kind, &a.stage).cmp(&(&b.account, &b.kind, &b.stage)))
    });
    let total = Total::of(&lines);
    let more = lines.len().saturating_sub(question.limit);
    lines.truncate(question.limit);
    Ok(Report { at, since: asked.since, latencies_since: asked.day(), comparator, lines, more, total, one_sided })
}

/// A read-only transaction that sees one moment, and whose statements may take longer than others.
async fn snapshot(ledger: &Ledger) -> Result<Transaction<'static, Postgres>, LedgerError> {
    let mut tx = ledger.begin().await?;
    sqlx::query("set transaction isolation level repeatable read, read only").execute(&mut *tx).await?;
    sqlx::query("set local statement_timeout = '120s'").execute(&mut *tx).await?;
    Ok(tx)
}

/// Where the comparator that was last heard of stands.
pub(super) async fn comparator(connection: &mut PgConnection) -> Result<Option<Comparator>, LedgerError> {
    let row = sqlx::query(
        "select name, started_at, extract(epoch from clock_timestamp() - beat_at)::float8 as silent_seconds,
            extract(epoch from clock_timestamp() - pins_until)::float8 as lag_seconds
         from crossover.comparators order by beat_at desc limit 1",
    );
    let Some(row) = row.fetch_optional(connection).await? else { return Ok(None) };
    Ok(Some(Comparator {
        name: row.try_get("name")?,
        started_at: row.try_get("started_at")?,
        silent_seconds: row.try_get("silent_seconds")?,
        lag_seconds: row.try_get("lag_seconds")?,
    }))
}

/// Why the comparator can't be relied on, if it can't.
fn away(comparator: Option<&Comparator>, bound: Duration) -> Option<String> {
    let bound = bound.as_secs_f64();
    match comparator {
        None => Some("no comparator has ever run".to_owned()),
        Some(c) if c.silent_seconds > bound => Some(format!("the comparator is silent for {:.0} s", c.silent_seconds)),
        Some(c) if c.lag_seconds > bound => Some(format!("the comparator is {:.0} s behind", c.lag_seconds)),
        Some(_) => None,
    }
}

/// A question with its times.
struct Asked<'a> {
    question: &'a Question,
    since: DateTime<Utc>,
    age: Duration,
}

/// What was counted of one account, kind and stage.
#[derive(FromRow)]
struct Counts {
    account: String,
    kind: String,
    stage: String,
    pinned: i64,
    matched: i64,
    diverged: i64,
    in_flight: i64,
    overdue: i64,
    dropped: i64,
    not_comparable: i64,
    incomplete: i64,
}

/// What narrows a read of pins or observations; $1 to $3.
const NARROW: &str =
    "($1::text is null or account = $1) and ($2::text is null or kind = $2) and ($3::text is null or stage = $3)";

impl Asked<'_> {
    fn bind<'q>(&'q self, sql: String) -> sqlx::query::Query<'q, Postgres, sqlx::postgres::PgArguments> {
        let Question { account, kind, stage, .. } = self.question;
        let query = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(account.as_deref()).bind(kind.as_deref());
        query.bind(stage.map(Stage::as_str)).bind(self.since)
    }

    async fn counts(&self, tx: &mut Transaction<'_, Postgres>) -> Result<Vec<Counts>, LedgerError> {
        let sql = format!(
            "with pinned as (
                select account, kind, stage, count(*) as pinned from crossover.pins
                where created_at >= $4 and stage in ('shadow', 'live') and {NARROW} group by account, kind, stage),
             seen as (
                select account, kind, stage,
                    count(*) filter (where verdict = 'matched') as matched,
                    count(*) filter (where verdict = 'diverged') as diverged,
                    count(*) filter (where verdict = 'in_flight') as in_flight,
                    count(*) filter (where verdict = 'in_flight'
                        and greatest(pinned_at, run_at) < clock_timestamp() - $5 * interval '1 second') as overdue,
                    count(*) filter (where verdict = 'dropped') as dropped,
                    count(*) filter (where verdict = 'not_comparable') as not_comparable,
                    count(*) filter (where verdict = 'incomplete') as incomplete
                from crossover.observations where pinned_at >= $4 and {NARROW} group by account, kind, stage)
             select account, kind, stage, coalesce(pinned, 0) as pinned, coalesce(matched, 0) as matched,
                coalesce(diverged, 0) as diverged, coalesce(in_flight, 0) as in_flight, coalesce(overdue, 0) as overdue,
                coalesce(dropped, 0) as dropped, coalesce(not_comparable, 0) as not_comparable,
                coalesce(incomplete, 0) as incomplete
             from pinned full join seen using (account, kind, stage)
             where stage in ('shadow', 'live') or diverged > 0"
        );
        let rows = self.bind(sql).bind(self.age.as_secs_f64()).fetch_all(&mut **tx).await?;
        Ok(rows.iter().map(Counts::from_row).collect::<Result<_, _>>()?)
    }

    /// Divergences by class, with their newest examples.
    async fn found(&self, tx: &mut Transaction<'_, Postgres>) -> Result<HashMap<Key, Vec<Found>>, LedgerError> {
        let sql = format!(
            "select account, kind, stage, class, max(place) as count, array_agg(id order by place) filter (where place <= {EXAMPLES}) as examples
             from (
                select o.account, o.kind, o.stage, c.class, o.id,
                    row_number() over (partition by o.account, o.kind, o.stage, c.class order by o.judged_at desc) as place
                from crossover.observations o cross join lateral (select distinct unnest(o.classes) as class) c
                where o.verdict = 'diverged' and o.pinned_at >= $4 and {NARROW}) ranked
             group by account, kind, stage, class order by max(place) desc, class"
        );
        let mut found: HashMap<Key, Vec<Found>> = HashMap::new();
        for row in self.bind(sql).fetch_all(&mut **tx).await? {
            let key = (row.try_get("account")?, row.try_get("kind")?, row.try_get("stage")?);
            found.entry(key).or_default().push(found_of(&row)?);
        }
        Ok(found)
    }

    async fn one_sided(&self, tx: &mut Transaction<'_, Postgres>) -> Result<i64, LedgerError> {
        let sql = format!(
            "select count(*) from crossover.pins where created_at >= $4 and stage in ('off', 'complete') and {NARROW}"
        );
        Ok(self.bind(sql).fetch_one(&mut **tx).await?.try_get(0)?)
    }

    /// The beginning of the first day whose latencies count.
    fn day(&self) -> DateTime<Utc> {
        self.since.date_naive().and_time(chrono::NaiveTime::MIN).and_utc()
    }

    async fn latencies(&self, ledger: &Ledger, config: &Config) -> Result<HashMap<Key, Latency>, LedgerError> {
        let Question { account, kind, stage, .. } = self.question.clone();
        let filter = latency::Filter { account, kind, stage, since_day: Some(self.since.date_naive()) };
        let found = latency::storage::read(ledger, &filter, &config.latency, u32::MAX).await?;
        let keyed = found.into_iter().map(|summary| {
            let latency::Summary { account, kind, stage, view, .. } = summary;
            ((account, kind, stage.as_str().to_owned()), latency_of(&view))
        });
        Ok(keyed.collect())
    }
}

fn latency_of(view: &latency::View) -> Latency {
    let test = &view.test;
    let side = |side: &latency::SideView| SideLatency { start: millis(side.start), run: millis(side.run) };
    let numbers = format!(
        "{} of {} pairs started over {:.0} ms later, {:.1} % may, {} pairs are needed at least",
        test.slow,
        test.pairs,
        test.margin_seconds * 1_000.0,
        test.allowed * 100.0,
        test.min_pairs,
    );
    Latency {
        pairs: view.pairs,
        temporal: side(&view.temporal),
        postgres: side(&view.postgres),
        answer: test.answer,
        test: numbers,
    }
}

fn millis(seconds: Option<latency::Quantiles>) -> Option<Quantiles> {
    seconds.map(|q| Quantiles { p50: q.p50 * 1_000.0, p95: q.p95 * 1_000.0, p99: q.p99 * 1_000.0 })
}

fn found_of(row: &PgRow) -> Result<Found, sqlx::Error> {
    let examples: Vec<uuid::Uuid> = row.try_get("examples")?;
    let next = examples.first().map_or_else(String::new, |id| format!("crossover why {id}"));
    Ok(Found { class: row.try_get("class")?, count: row.try_get("count")?, examples, next })
}

/// What lines are judged by.
struct Judging {
    bounds: Bounds,
    comparator: Option<String>,
}

impl Judging {
    fn line(&self, counts: Counts, divergences: Vec<Found>, latency: Option<Latency>) -> Line {
        let judged = counts.matched + counts.diverged;
        let evidence = Evidence {
            pinned: counts.pinned,
            judged,
            diverged: counts.diverged,
            overdue: counts.overdue,
            incomplete: counts.incomplete,
            latency: latency.as_ref().map(|latency| (latency.answer, latency.test.clone())),
            comparator: self.comparator.clone(),
        };
        let (verdict, why) = judge(&evidence, &self.bounds);
        let verdicts = [
            ("matched", counts.matched),
            ("diverged", counts.diverged),
            ("in_flight", counts.in_flight),
            ("dropped", counts.dropped),
            ("not_comparable", counts.not_comparable),
            ("incomplete", counts.incomplete),
        ];
        Line {
            account: counts.account,
            kind: counts.kind,
            stage: counts.stage,
            pinned: counts.pinned,
            judged,
            coverage: (counts.pinned > 0).then(|| share(judged, counts.pinned)),
            verdicts: verdicts.into_iter().map(|(verdict, n)| (verdict.to_owned(), n)).collect::<BTreeMap<_, _>>(),
            divergences,
            latency,
            verdict,
            why,
        }
    }
}
