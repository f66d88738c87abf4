//! The comparator at work: takes notice of new pins and of new sightings, looks at what is due to be looked at, and writes
//! verdicts. Where it stands is kept in Postgres, so a restart goes on; the process itself holds a batch, and who overtook
//! whom.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use super::facts::{Facts, Instant};
use super::gather::Sources;
use super::judge::{Bounds, Context, Span, judge};
use super::lanes::Lanes;
use super::rules::{Clean, RuleBook, Rules};
use super::storage::{Rows, Stand, score, write};
use super::written::Writing;
use super::{PerSide, latency};
use crate::config::{Config, Kind};
use crate::interaction::Side;
use crate::ledger::{Ledger, LedgerError, NewPin, within};
use crate::metrics::Metrics;
use crate::observer::{Log, sampled};

/// How a comparator compares.
#[derive(Debug, Clone)]
pub struct ComparatorOptions {
    /// The pause between two looks when there is nothing left to do.
    pub every: Duration,
    /// 0 to 1: the share of interactions that is compared; the observers'.
    pub share: f64,
    /// Whoever starts does not look back further than this.
    pub catch_up: Duration,
    /// Rows are kept for so long.
    pub keep: Duration,
    /// Bounds that are the same for every kind.
    pub bounds: Bounds,
    /// What is tolerated, by kind.
    pub rules: RuleBook,
    /// How latencies are compared.
    pub latency: latency::Options,
}

impl From<&Config> for ComparatorOptions {
    fn from(config: &Config) -> Self {
        let c = &config.comparator;
        let span = |duration: Duration| TimeDelta::from_std(duration).unwrap_or(TimeDelta::MAX);
        let others = Rules { late: span(c.late), early: span(c.early), retry: span(c.retry), ..Rules::default() };
        let rules = |kind: &Kind| Rules {
            late: kind.late.map_or(others.late, span),
            early: kind.early.map_or(others.early, span),
            retry: kind.retry.map_or(others.retry, span),
            ignore: kind.ignore.clone(),
            clean: kind.clean.iter().cloned().map(|(pattern, replacement)| Clean { pattern, replacement }).collect(),
        };
        let kinds = c.kinds.iter().map(|(name, kind)| (name.clone(), rules(kind))).collect();
        Self {
            every: c.every,
            share: c.sample,
            catch_up: c.catch_up,
            keep: c.keep,
            bounds: Bounds { patience: span(c.patience), clocks: span(c.clocks), recovery: span(c.recovery) },
            rules: RuleBook { others, kinds },
            latency: config.latency.clone(),
        }
    }
}

/// Compares the sides. Several may run; one of them works.
pub struct Comparator {
    sources: Sources,
    options: ComparatorOptions,
    metrics: Arc<Metrics>,
    me: Uuid,
    leads: bool,
    lanes: Lanes,
    housekeeping: std::time::Instant,
}

/// Pins or rows at a time.
const BATCH: i64 = 500;
/// Sightings at a time.
const SIGHTINGS: i64 = 2_000;
/// Back to when sightings are read to know who overtook whom.
const REMEMBER: TimeDelta = TimeDelta::minutes(5);
/// How often old rows are deleted and the gauges are set.
const HOUSEKEEPING: Duration = Duration::from_secs(5);
const AWAY: &str = "no comparator was running";

impl Comparator {
    /// A comparator on connections of its own: it must take none from routers and workers.
    pub fn new(pool: PgPool, options: ComparatorOptions, metrics: Arc<Metrics>) -> Self {
        let sources = Sources { ledger: Ledger::new(pool.clone()), log: Log::new(pool.clone()), rows: Rows::new(pool) };
        let (me, lanes) = (Uuid::new_v4(), Lanes::default());
        Self { sources, options, metrics, me, leads: false, lanes, housekeeping: std::time::Instant::now() }
    }

    /// Compares until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut tick = tokio::time::interval(self.options.every);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut failed = false;
        while stop.run_until_cancelled(tick.tick()).await.is_some() {
            let began = std::time::Instant::now();
            // What is cut off is rolled back, and done again by whoever comes next.
            let Some(passed) = stop.run_until_cancelled(self.pass()).await else { break };
            match passed {
                Ok(()) if std::mem::take(&mut failed) => info!("the comparator compares again"),
                Ok(()) => {}
                Err((call, error)) => {
                    self.metrics.comparator.errors.with_label_values(&[call]).inc();
                    if !failed {
                        warn!(call, %error, "the comparator can't go on; it tries again");
                    }
                    failed = true;
                }
            }
            self.metrics.comparator.pass_seconds.observe(began.elapsed().as_secs_f64());
        }
        if self.leads && tokio::time::timeout(Duration::from_secs(2), self.sources.rows.resign(self.me)).await.is_err()
        {
            warn!("the comparator can't tell that it ends; another takes over in a while");
        }
    }

    /// Works until there is nothing left to do just now.
    async fn pass(&mut self) -> Result<(), (&'static str, LedgerError)> {
        loop {
            let stand = self.sources.rows.lead(self.me, self.options.catch_up).await.map_err(|e| ("lead", e))?;
            let Some(stand) = stand else {
                self.leads = false;
                return Ok(());
            };
            if !self.leads {
                self.begin(&stand).await.map_err(|e| ("begin", e))?;
                self.leads = true;
                continue;
            }
            let pins = self.take_in(&stand).await.map_err(|e| ("pins", e))?;
            let seen = self.notice(&stand).await.map_err(|e| ("sightings", e))?;
            let looked = self.look().await.map_err(|e| ("look", e))?;
            if self.housekeeping.elapsed() > HOUSEKEEPING {
                self.keep_house().await.map_err(|e| ("keep_house", e))?;
            }
            if !(pins || seen || looked) {
                return Ok(());
            }
        }
    }

    /// Takes over where another has stopped: what lies too far back is incomplete, and who overtook whom is read again.
    async fn begin(&mut self, stand: &Stand) -> Result<(), LedgerError> {
        let back = TimeDelta::from_std(self.options.catch_up).unwrap_or(TimeDelta::MAX);
        let from = stand.now.checked_sub_signed(back).unwrap_or(Instant::MIN_UTC);
        let rows = &self.sources.rows;
        let mut until = stand.pins_until;
        if until < from {
            warn!(since = %until, "no comparator was running for longer than comparator.catch_up; what was pinned meanwhile is incomplete");
        }
        while until < from {
            let pins = self.sources.ledger.pins_between(until, from, BATCH).await?;
            until = page_end(&pins, from);
            rows.take_in(self.me, &self.sampled(&pins), until, Some(AWAY)).await?;
        }
        if stand.pins_until < from {
            while rows.give_up(from, AWAY, BATCH).await? == BATCH as u64 {}
        }
        if stand.sightings_until < from {
            rows.seen(self.me, &[], &[], from).await?;
        }
        self.remember(stand.now - REMEMBER, stand.now).await?;
        info!(comparator = %self.me, "the comparator works");
        Ok(())
    }

    /// Reads again who overtook whom.
    async fn remember(&mut self, mut after: Instant, until: Instant) -> Result<(), LedgerError> {
        self.lanes = Lanes::default();
        loop {
            let page = self.sources.log.ids_between(after, until, SIGHTINGS).await?;
            let Some((_, last)) = page.last() else { return Ok(()) };
            after = *last;
            let ids = distinct(&page);
            let gathered = self.sources.gather(&ids).await?;
            ids.iter().for_each(|id| self.lanes.note(&gathered.facts(*id)));
        }
    }

    /// Makes rows of new pins. Whether there are more.
    async fn take_in(&self, stand: &Stand) -> Result<bool, LedgerError> {
        let until = self.sources.ledger.pins_complete_until().await?;
        self.metrics.comparator.behind(stand.now, stand.pins_until.min(stand.sightings_until));
        if until <= stand.pins_until {
            return Ok(false);
        }
        let pins = self.sources.ledger.pins_between(stand.pins_until, until, BATCH).await?;
        self.sources.rows.take_in(self.me, &self.sampled(&pins), page_end(&pins, until), None).await?;
        Ok(pins.len() >= BATCH as usize)
    }

    fn sampled<'a>(&self, pins: &'a [NewPin]) -> Vec<&'a NewPin> {
        pins.iter().filter(|pin| sampled(pin.id, self.options.share)).collect()
    }

    /// Takes notice of new sightings. Whether there are more.
    async fn notice(&self, stand: &Stand) -> Result<bool, LedgerError> {
        let Sources { ledger, log, rows } = &self.sources;
        let until = log.complete_until().await?;
        if until <= stand.sightings_until {
            return Ok(false);
        }
        let page = log.ids_between(stand.sightings_until, until, SIGHTINGS).await?;
        let ids = distinct(&page);
        let unknown = rows.unknown(&ids).await?;
        if !unknown.is_empty() {
            let pinned: HashMap<Uuid, NewPin> = ledger.pinned(&unknown).await?.into_iter().map(|p| (p.id, p)).collect();
            self.extra(&unknown, &pinned).await?;
        }
        let more = page.len() >= SIGHTINGS as usize;
        let ended = self.ended_early(&ids).await?;
        let mut again = ids;
        let judged = rows.judged_members(&again).await?;
        if !judged.is_empty() {
            // Whether a neighbour was in order may be another matter now.
            again.extend(ledger.neighbours(&judged).await?);
        }
        rows.seen(self.me, &again, &ended, page.last().filter(|_| more).map_or(until, |(_, last)| *last)).await?;
        Ok(more)
    }

    /// Those of `ids` that have ended before they were due: both sides settle then, and nothing of them comes at their time.
    async fn ended_early(&self, ids: &[Uuid]) -> Result<Vec<Uuid>, LedgerError> {
        let not_due = self.sources.rows.not_due(ids).await?;
        if not_due.is_empty() {
            return Ok(not_due);
        }
        let open = self.sources.ledger.still_unended(&not_due).await?;
        Ok(not_due.into_iter().filter(|id| !open.contains(id)).collect())
    }

    /// Makes rows of what was begun on a side that was not to have it. What is pinned in `shadow` or `live` gets its row in
    /// its turn, and what is `complete` is nobody's business unless Temporal begins it.
    async fn extra(&self, unknown: &[Uuid], pinned: &HashMap<Uuid, NewPin>) -> Result<(), LedgerError> {
        let mut extra = Vec::new();
        for &side in Side::ALL {
            let not_to_have = |pin: &NewPin| match side {
                Side::Temporal => !pin.on_temporal,
                Side::Postgres => !pin.on_postgres,
            };
            let ids: Vec<Uuid> = unknown.iter().filter(|id| pinned.get(id).is_none_or(not_to_have)).copied().collect();
            if !ids.is_empty() {
                extra.extend(self.sources.log.begun_on(side, &ids).await?);
            }
        }
        let (known, unpinned): (Vec<Uuid>, Vec<Uuid>) = extra.into_iter().partition(|id| pinned.contains_key(id));
        let known: Vec<&NewPin> = known.iter().filter_map(|id| pinned.get(id)).collect();
        if known.is_empty() && unpinned.is_empty() {
            return Ok(());
        }
        self.sources.rows.add_extra(&known, &unpinned).await
    }

    /// Looks at what is due to be looked at. Whether there is more.
    async fn look(&mut self) -> Result<bool, LedgerError> {
        let (mut tx, taken, now) = self.sources.rows.take_due(BATCH).await?;
        if taken.is_empty() {
            return Ok(false);
        }
        let sighted_until = self.sources.log.seen_until().await?;
        let ids: Vec<Uuid> = taken.iter().map(|t| t.id).collect();
        let gathered = self.sources.gather(&ids).await?;
        let facts: Vec<Facts> = ids.iter().map(|id| gathered.facts(*id)).collect();
        drop(gathered);
        facts.iter().for_each(|facts| self.lanes.note(facts));
        let since = facts.iter().filter_map(|f| f.pin.as_ref()).map(|p| p.run_at.min(p.created_at)).min();
        let (disturbances, gaps) = self.windows(since.unwrap_or(now) - self.options.bounds.recovery).await?;
        let context = Context {
            now,
            sighted_until,
            temporal_passed: self.lanes.highest(Side::Temporal),
            disturbances: &disturbances,
            gaps: &gaps,
            lanes: &self.lanes,
            bounds: self.options.bounds,
        };
        let mut writing = Writing::new(now, self.options.bounds.patience);
        for (taken, facts) in taken.iter().zip(&facts) {
            let judgement = judge(facts, self.options.rules.of(&taken.kind), &context);
            writing.add(taken, facts, judgement);
        }
        within(async {
            write(&mut tx, writing.rows()).await?;
            score(&mut tx, writing.changes()).await
        })
        .await?;
        latency::storage::add(&mut tx, writing.pairs(), &self.options.latency).await?;
        within(tx.commit()).await?;
        writing.tell(&self.metrics.comparator);
        self.metrics.comparator.paired(writing.pairs());
        Ok(taken.len() >= BATCH as usize)
    }

    /// When a side was disturbed and when sightings may be lost, after `since`.
    async fn windows(&self, since: Instant) -> Result<(PerSide<Vec<Span>>, Vec<Span>), LedgerError> {
        let log = &self.sources.log;
        let mut disturbances = PerSide::<Vec<Span>>::default();
        for d in log.disturbances(since).await? {
            disturbances.of_mut(d.side).push(Span { from: d.began_at, until: d.ended_at });
        }
        let gaps = log.gaps(since).await?.into_iter().map(|gap| Span { from: gap.from, until: gap.until });
        Ok((disturbances, gaps.collect()))
    }

    /// Deletes a few old rows and sets the gauges.
    async fn keep_house(&mut self) -> Result<(), LedgerError> {
        self.sources.rows.expire(self.options.keep, BATCH).await?;
        let progress = self.sources.rows.progress().await?;
        let metrics = &self.metrics.comparator;
        metrics.pending.set(progress.pending);
        metrics.coverage_ratio.set(match progress.judged {
            0 => 0.0,
            judged => self.options.share * progress.compared as f64 / judged as f64,
        });
        self.housekeeping = std::time::Instant::now();
        Ok(())
    }
}

/// Waits until everything that was pinned until `until` and is due has a verdict, at most for `patience`. How many have
/// none then; none of them: it has not come so far.
pub async fn caught_up(pool: &PgPool, until: Instant, patience: Duration) -> Result<Option<u64>, LedgerError> {
    let rows = Rows::new(pool.clone());
    let wait = async {
        loop {
            match rows.left(until).await {
                Ok(Some(0)) => return,
                _ => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
    };
    if tokio::time::timeout(patience, wait).await.is_ok() {
        return Ok(Some(0));
    }
    Ok(rows.left(until).await?.map(|left| left as u64))
}

/// Up to when a page of pins is all there is.
fn page_end(pins: &[NewPin], until: Instant) -> Instant {
    pins.last().filter(|_| pins.len() >= BATCH as usize).map_or(until, |pin| pin.created_at)
}

fn distinct(page: &[(Uuid, Instant)]) -> Vec<Uuid> {
    let mut ids: Vec<Uuid> = page.iter().map(|(id, _)| *id).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}
