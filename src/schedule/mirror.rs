//! What Temporal is to have of a schedule. Pure.
//!
//! Temporal's scheduler knows whole seconds, and reads cron and changing clocks in another way than we do. So an interval of whole
//! seconds is an interval there, and of everything else Temporal gets the next times one by one, in UTC, each at the first second
//! that is not before it; they are renewed long before they run out. What Temporal starts then is no run but a launcher, which
//! brings the time to the plan: see [`super::tick`].

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Datelike, SubsecRound, TimeDelta, Timelike, Utc};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::definition::Definition;
use super::storage::Schedule;
use super::times::{Every, Spec, Times};
use crate::interaction::Payload;

/// Times that Temporal is told one by one, at most.
const MOST_TIMES: usize = 2_000;
/// Rows of such times: those of an hour at the same second are one.
const MOST_ROWS: usize = 200;
/// Temporal refuses a schedule that names a later one. What comes after that is told as it comes nearer.
const LAST_YEAR: i32 = 2100;
/// A little of the past is told as well, so that nothing falls between a look at the clock and Temporal's.
const BACK: TimeDelta = TimeDelta::seconds(10);
/// Payloads up to this go along with every launcher, and stay in its history: a schedule that comes each second has 86,400 of them a day.
pub(super) const MOST_CARRIED: usize = 8 << 10;
/// Temporal itself makes up for so much of an outage of its own; more is caught up from the row, by whoever looks at it next.
pub(super) const CATCH_UP: TimeDelta = TimeDelta::minutes(1);
/// A launcher tries for as long as it takes to the next one, within these.
const LEAST_PATIENCE: TimeDelta = TimeDelta::seconds(30);
const MOST_PATIENCE: TimeDelta = TimeDelta::minutes(15);

/// What a launcher is started with: whose tick it brings, and what it goes by while the row can't be read.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Launch {
    /// The schedule.
    pub schedule: Uuid,
    /// Which wish of its mirror this is of.
    pub wish: i64,
    /// A hash of all that Temporal has of it.
    pub content: String,
    /// How it was defined then.
    pub definition: Definition,
    /// With its payload: a large one is not carried by every launcher, and does not run while Postgres is away.
    pub whole: bool,
    /// For so long it tries.
    pub patience_ms: u64,
    /// What somebody asked for; absent: a time of the schedule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

/// When Temporal ticks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ticks {
    /// Every so many seconds, so many after the epoch's, not before an instant.
    Every {
        /// Seconds.
        every: i64,
        /// Seconds.
        phase: i64,
        /// The first.
        from: DateTime<Utc>,
    },
    /// At these; each row's minutes are of one hour and at one second.
    At(Vec<Row>),
}

/// Some minutes of an hour.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The hour, in UTC.
    pub hour: DateTime<Utc>,
    /// The minutes, ascending.
    pub minutes: Vec<u32>,
    /// At this second of each.
    pub second: u32,
}

/// A schedule as Temporal is to have it.
#[derive(Debug, Clone)]
pub struct Mirror {
    /// What it starts.
    pub launch: Launch,
    /// When.
    pub ticks: Ticks,
    /// Why it is paused; none: it is not.
    pub paused: Option<String>,
    /// Times that Temporal has missed for its own sake are made up for within this.
    pub catch_up: TimeDelta,
    /// When its times run low; none: they don't.
    pub again: Option<DateTime<Utc>>,
}

/// What Temporal had of a schedule, or has now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reflected {
    /// It has what it is to have.
    InStep,
    /// It has that of a later wish, this one.
    Later(i64),
}

/// Tells Temporal. Repeating anything is always safe.
#[async_trait]
pub trait Reflect: Send + Sync {
    /// Makes Temporal's schedule this, and looks whether it is; an older wish takes no newer one's place.
    async fn reflect(&self, mirror: &Mirror) -> Result<Reflected, String>;

    /// Starts the launcher of what somebody asked for.
    async fn launch(&self, launch: &Launch) -> Result<(), String>;

    /// Makes Temporal forget a schedule.
    async fn forget(&self, schedule: Uuid) -> Result<(), String>;

    /// Whether Temporal has any schedule that starts launchers.
    async fn has_any(&self) -> Result<bool, String>;
}

impl Launch {
    /// The same without its payload, for who has no use for it.
    pub fn without_payload(mut self) -> Self {
        if let Ok(none) = Payload::parse("null".to_owned()) {
            (self.definition.payload, self.whole) = (none, false);
        }
        self
    }
}

impl Mirror {
    /// What Temporal is to have of `schedule`, as of `now`.
    pub fn of(schedule: &Schedule, wish: i64, now: DateTime<Utc>) -> Result<Self, String> {
        let mut definition = schedule.definition.clone();
        let whole = definition.payload.get().len() <= MOST_CARRIED;
        if !whole {
            definition.payload = Payload::parse("null".to_owned()).map_err(|error| error.to_string())?;
        }
        let times = definition.times().map_err(|faults| format!("its spec can't be read: {faults:?}"))?;
        let (ticks, again) = ticks(&definition.spec, &times, now);
        let gap = match times.next(now, 2).as_slice() {
            [first, second] => *second - *first,
            _ => MOST_PATIENCE,
        };
        let patience = gap.clamp(LEAST_PATIENCE, MOST_PATIENCE).to_std().unwrap_or_default();
        let paused = schedule.paused.as_ref().map(|pause| pause.reason.clone());
        let catch_up = TimeDelta::milliseconds(definition.catch_up_window_ms).min(CATCH_UP);
        let patience_ms = patience.as_millis() as u64;
        let (id, content) = (schedule.id, String::new());
        let launch = Launch { schedule: id, wish, content, definition, whole, patience_ms, token: None };
        let mut mirror = Self { launch, ticks, paused, catch_up, again };
        mirror.launch.content = mirror.hash()?;
        Ok(mirror)
    }

    /// The same, but Temporal starts nothing: see `schedules.mirror`.
    pub fn held(mut self) -> Result<Self, String> {
        self.paused.get_or_insert_with(|| "schedules.mirror is \"paused\" in crossover's configuration".to_owned());
        self.launch.content = self.hash()?;
        Ok(self)
    }

    /// A launcher is given up by the server after so long, so that those that nobody runs don't pile up.
    pub fn longest(launch: &Launch) -> Duration {
        let jitter = Duration::from_millis(launch.definition.jitter_ms.unsigned_abs());
        Duration::from_millis(launch.patience_ms) + jitter + Duration::from_secs(600)
    }

    fn hash(&self) -> Result<String, String> {
        let definition = serde_json::to_string(&self.launch.definition).map_err(|error| error.to_string())?;
        let what =
            format!("{}\0{:?}\0{:?}\0{:?}\0{definition}", self.launch.wish, self.ticks, self.paused, self.catch_up);
        Ok(Sha256::digest(what).iter().take(16).fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        }))
    }
}

/// The tick that brings a nominal time: the first whole second that is not before it.
pub fn tick_of(nominal: DateTime<Utc>) -> DateTime<Utc> {
    let second = nominal.trunc_subsecs(0);
    if second == nominal { nominal } else { second + TimeDelta::seconds(1) }
}

/// The nominal time that a tick brings; none: none.
pub fn nominal_of(times: &Times, tick: DateTime<Utc>) -> Option<DateTime<Utc>> {
    times.until(tick).filter(|nominal| tick_of(*nominal) == tick.trunc_subsecs(0))
}

fn ticks(spec: &Spec, times: &Times, now: DateTime<Utc>) -> (Ticks, Option<DateTime<Utc>>) {
    if let Spec::Every(Every { every_ms, starts_at }) = spec
        && every_ms % 1_000 == 0
    {
        let (every, from) = (every_ms / 1_000, tick_of(starts_at.trunc_subsecs(3)));
        return (Ticks::Every { every, phase: from.timestamp().rem_euclid(every), from }, None);
    }
    let mut rows: BTreeMap<(DateTime<Utc>, u32), Vec<u32>> = BTreeMap::new();
    let mut told = Vec::new();
    let next = std::iter::successors(times.after(now - BACK), |last| times.after(*last));
    for tick in next.take(MOST_TIMES).map(tick_of).take_while(|tick| tick.year() <= LAST_YEAR) {
        let hour = tick - TimeDelta::seconds((tick.minute() * 60 + tick.second()).into());
        let full = rows.len() >= MOST_ROWS;
        match rows.entry((hour, tick.second())) {
            std::collections::btree_map::Entry::Vacant(_) if full => break,
            entry => {
                let minutes = entry.or_default();
                if minutes.last() != Some(&tick.minute()) {
                    minutes.push(tick.minute());
                }
            }
        }
        told.push(tick);
    }
    let more = told.last().is_some_and(|last| times.after(*last).is_some());
    let again = told.get(told.len() / 2).filter(|_| more).copied();
    let row = |((hour, second), minutes)| Row { hour, minutes, second };
    (Ticks::At(rows.into_iter().map(row).collect()), again)
}

impl Row {
    /// Year, month, day of the month and hour.
    pub fn hour_of_day(&self) -> [i32; 4] {
        [self.hour.year(), self.hour.month() as i32, self.hour.day() as i32, self.hour.hour() as i32]
    }
}

#[cfg(test)]
mod tests {
    use super::super::times::{ByClock, Once};
    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    fn cron(cron: &str, zone: &str) -> Spec {
        Spec::Cron(ByClock { cron: cron.to_owned(), time_zone: zone.to_owned() })
    }

    /// The ticks of rows, one by one.
    fn unfolded(ticks: &Ticks) -> Vec<DateTime<Utc>> {
        let Ticks::At(rows) = ticks else { panic!("{ticks:?}") };
        let of = |row: &Row| {
            let (hour, second) = (row.hour, row.second);
            let at = move |minute: &u32| hour + TimeDelta::seconds((minute * 60 + second).into());
            row.minutes.iter().map(at).collect::<Vec<_>>()
        };
        let mut all: Vec<_> = rows.iter().flat_map(of).collect();
        all.sort_unstable();
        all
    }

    #[test]
    fn what_comes_rarely_is_told_no_further_than_temporal_takes_it() {
        let now = at("2027-03-01T00:00:00Z");
        for (spec, some) in [
            (cron("0 0 1 1 *", "UTC"), true),
            (cron("0 0 29 2 *", "Europe/Berlin"), true),
            (Spec::Once(Once { at: at("2110-01-01T00:00:00Z") }), false),
            (Spec::Every(Every { every_ms: 12_345_678_901, starts_at: now }), true),
        ] {
            let (ticks, _) = ticks(&spec, &spec.read().unwrap(), now);
            let all = unfolded(&ticks);
            assert_eq!(!all.is_empty(), some, "{spec:?}");
            assert!(all.iter().all(|tick| tick.year() <= LAST_YEAR), "{spec:?}");
        }
    }

    #[test]
    fn an_interval_of_whole_seconds_keeps_its_phase() {
        let spec = Spec::Every(Every { every_ms: 3_600_000, starts_at: at("2027-01-01T00:07:11.25Z") });
        let (ticks, again) = ticks(&spec, &spec.read().unwrap(), at("2027-03-01T00:00:00Z"));
        let from = at("2027-01-01T00:07:12Z");
        assert_eq!((ticks, again), (Ticks::Every { every: 3_600, phase: 432, from }, None));
    }

    #[test]
    fn every_time_of_anything_else_is_told_as_it_is_until_they_run_low() {
        let now = at("2027-03-27T12:00:00Z");
        for spec in [
            cron("30 2 * * *", "Europe/Berlin"),
            cron("*/7 * * * *", "America/New_York"),
            cron("* * * * * *", "UTC"),
            cron("0 9 L * *", "Asia/Tokyo"),
            Spec::Every(Every { every_ms: 1_500, starts_at: at("2027-01-01T00:00:00.7Z") }),
            Spec::Once(Once { at: at("2027-05-01T00:00:00.5Z") }),
        ] {
            let times = spec.read().unwrap();
            let (ticks, again) = ticks(&spec, &times, now);
            let told = unfolded(&ticks);
            let wanted: Vec<_> = times.next(now - BACK, told.len()).into_iter().map(tick_of).collect();
            assert_eq!(told, wanted, "{spec:?}");
            assert_eq!(again.is_none(), matches!(spec, Spec::Once(_)), "{spec:?}");
            assert!(again.is_none_or(|again| again > now + TimeDelta::minutes(10)), "{spec:?}: {again:?}");
            for (tick, nominal) in told.iter().zip(times.next(now - BACK, told.len())) {
                assert_eq!(nominal_of(&times, *tick), Some(nominal), "{spec:?}");
            }
        }
    }

    #[test]
    fn a_tick_beside_the_plan_brings_nothing() {
        let spec = cron("30 2 * * *", "Europe/Berlin");
        let times = spec.read().unwrap();
        assert_eq!(nominal_of(&times, at("2027-02-01T01:30:00Z")), Some(at("2027-02-01T01:30:00Z")));
        for beside in ["2027-02-01T01:30:01Z", "2027-02-01T01:29:59Z", "2027-02-01T02:30:00Z"] {
            assert_eq!(nominal_of(&times, at(beside)), None, "{beside}");
        }
    }
}
