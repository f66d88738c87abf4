//! When a schedule fires. Pure: no I/O, no clock.

use std::str::FromStr;
use std::sync::Arc;

use chrono::{DateTime, Datelike, SubsecRound, TimeDelta, Utc};
use chrono_tz::Tz;
use croner::Cron;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::router::request::Fault;

/// When a schedule fires, in the wire shape of the API.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(untagged)]
pub enum Spec {
    /// Every so often.
    Every(Every),
    /// By the clock on a wall.
    Cron(ByClock),
    /// Once.
    Once(Once),
}

/// At `starts_at`, and every so often after it. A change of `every_ms` keeps `starts_at`, and with it the phase.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Every {
    /// Milliseconds from one nominal time to the next; at least 1,000.
    pub every_ms: i64,
    /// The first nominal time. Absent in a request: the moment of the creation, and the first run comes one interval later.
    #[schema(required = false)]
    pub starts_at: DateTime<Utc>,
}

/// A cron expression, and the time zone in which it is read.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ByClock {
    /// Minute, hour, day of the month, month, day of the week; or six fields, with seconds first.
    pub cron: String,
    /// A name of the IANA database, like `Europe/Berlin`. Absent in a request: UTC.
    #[schema(required = false)]
    pub time_zone: String,
}

/// One instant.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Once {
    /// When.
    pub at: DateTime<Utc>,
}

/// The shortest interval.
pub const SHORTEST: TimeDelta = TimeDelta::seconds(1);
/// The longest.
pub const LONGEST: TimeDelta = TimeDelta::days(3_660);
/// The furthest away that a first time may be: a hundred years.
const FURTHEST: TimeDelta = TimeDelta::days(36_525);
/// Times are counted in these years, which Postgres, JSON and sums with any interval have room for.
const YEARS: std::ops::RangeInclusive<i32> = 1970..=5_000;
/// So many times by a clock are counted: after an outage, many schedules have many behind them.
const COUNTED: usize = 100;
/// So many gaps are looked at for the shortest one.
const GAPS: usize = 50;

/// A spec that was read: what [`Spec::read`] makes. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Times(Arc<Kind>);

#[derive(Debug)]
enum Kind {
    Every { every: TimeDelta, starts_at: DateTime<Utc> },
    Cron { cron: Box<Cron>, zone: Tz },
    Once { at: DateTime<Utc> },
}

impl Spec {
    /// Reads it, or names every fault.
    pub fn read(&self) -> Result<Times, Vec<Fault>> {
        let kind = match self {
            Spec::Every(Every { every_ms, starts_at }) => {
                let every = TimeDelta::try_milliseconds(*every_ms).filter(|every| (SHORTEST..=LONGEST).contains(every));
                let message = || {
                    let (least, most) = (SHORTEST.num_milliseconds(), LONGEST.num_milliseconds());
                    format!("must be {least} to {most}, is {every_ms}")
                };
                let every = every.ok_or_else(|| vec![fault("spec.every_ms", message())])?;
                Kind::Every { every, starts_at: counted("spec.starts_at", *starts_at)? }
            }
            Spec::Cron(ByClock { cron, time_zone }) => match (cron_of(cron), zone_of(time_zone)) {
                (Ok(cron), Ok(zone)) => Kind::Cron { cron: Box::new(cron), zone },
                (cron, zone) => return Err(cron.err().into_iter().chain(zone.err()).collect()),
            },
            Spec::Once(Once { at }) => Kind::Once { at: counted("spec.at", *at)? },
        };
        Ok(Times(Arc::new(kind)))
    }

    /// An instant by its clock, where it has one.
    pub fn local(&self, instant: DateTime<Utc>) -> Option<String> {
        let Spec::Cron(ByClock { time_zone, .. }) = self else { return None };
        let zone = zone_of(time_zone).ok()?;
        Some(instant.with_timezone(&zone).format("%a %F %T %Z").to_string())
    }

    /// What is wrong with it at `now`, a jitter of `jitter` included: what never fires, too.
    pub fn faults(&self, jitter: TimeDelta, now: DateTime<Utc>) -> Vec<Fault> {
        let times = match self.read() {
            Ok(times) => times,
            Err(faults) => return faults,
        };
        let mut faults = Vec::new();
        if let Kind::Every { starts_at: first, .. } | Kind::Once { at: first } = &*times.0
            && *first - now > FURTHEST
        {
            let field = if matches!(self, Spec::Once(_)) { "spec.at" } else { "spec.starts_at" };
            faults.push(fault(field, format!("is {first}, more than {} days away", FURTHEST.num_days())));
        }
        if times.after(now).is_none() {
            let (field, message) = match self {
                Spec::Once(Once { at }) => ("spec.at", format!("is {at}, which has passed: it would never fire")),
                Spec::Cron(ByClock { cron, .. }) => {
                    ("spec.cron", format!("`{cron}` names no time that comes: it would never fire"))
                }
                Spec::Every(_) => ("spec.starts_at", "is further away than any time is counted".to_owned()),
            };
            faults.push(fault(field, message));
        }
        let gap = times.shortest_gap(now);
        if jitter < TimeDelta::zero() || jitter >= gap {
            let (is, gap) = (jitter.num_milliseconds(), gap.num_milliseconds());
            let message = format!("must be 0 or more and less than the shortest gap between two times, {gap}; is {is}");
            faults.push(fault("jitter_ms", message));
        }
        faults
    }
}

impl Times {
    /// The first nominal time after `instant`; none where there is no more.
    pub fn after(&self, instant: DateTime<Utc>) -> Option<DateTime<Utc>> {
        match &*self.0 {
            Kind::Every { starts_at, .. } if instant < *starts_at => Some(*starts_at),
            Kind::Every { every, starts_at } => step(*starts_at, *every, steps(*starts_at, *every, instant) + 1),
            Kind::Cron { cron, zone } => {
                let next = cron.find_next_occurrence(&instant.trunc_subsecs(0).with_timezone(zone), false).ok()?;
                Some(next.with_timezone(&Utc))
            }
            Kind::Once { at } => (*at > instant).then_some(*at),
        }
    }

    /// The last nominal time that is not after `instant`; none where there was none.
    pub fn until(&self, instant: DateTime<Utc>) -> Option<DateTime<Utc>> {
        match &*self.0 {
            Kind::Every { starts_at, .. } if instant < *starts_at => None,
            Kind::Every { every, starts_at } => step(*starts_at, *every, steps(*starts_at, *every, instant)),
            Kind::Cron { cron, zone } => {
                let last = cron.find_previous_occurrence(&instant.trunc_subsecs(0).with_timezone(zone), true).ok()?;
                Some(last.with_timezone(&Utc))
            }
            Kind::Once { at } => (*at <= instant).then_some(*at),
        }
    }

    /// The next nominal time where times count from the end of the last run: an interval later, or the next by the clock.
    pub fn after_end(&self, end: DateTime<Utc>) -> Option<DateTime<Utc>> {
        match &*self.0 {
            Kind::Every { every, starts_at } => {
                end.trunc_subsecs(3).checked_add_signed(*every).map(|next| next.max(*starts_at))
            }
            _ => self.after(end),
        }
    }

    /// The next `n` nominal times after `instant`.
    pub fn next(&self, instant: DateTime<Utc>, n: usize) -> Vec<DateTime<Utc>> {
        std::iter::successors(self.after(instant), |last| self.after(*last)).take(n).collect()
    }

    /// How many times there are from `first`, which counts whatever it is, to `last`. By a clock, they are counted one by
    /// one, and no more than are worth it.
    pub fn count(&self, first: DateTime<Utc>, last: DateTime<Utc>) -> i64 {
        match &*self.0 {
            Kind::Every { every, starts_at } => {
                let until = |instant| steps(*starts_at, *every, instant).max(-1);
                1 + (until(last) - until(first)).max(0)
            }
            _ => {
                let times = std::iter::successors(Some(first), |time| self.after(*time).filter(|next| *next <= last));
                times.take(COUNTED).count() as i64
            }
        }
    }

    /// The shortest gap between two of the next times; a day where there are no two.
    fn shortest_gap(&self, now: DateTime<Utc>) -> TimeDelta {
        if let Kind::Every { every, .. } = &*self.0 {
            return *every;
        }
        let next = self.next(now, GAPS);
        next.windows(2).map(|pair| pair[1] - pair[0]).min().unwrap_or(TimeDelta::days(1))
    }
}

/// When a nominal time is fired: up to `jitter` later, by a hash, so that every scheduler says the same.
pub fn jittered(schedule: Uuid, nominal: DateTime<Utc>, jitter: TimeDelta) -> DateTime<Utc> {
    let most = jitter.num_milliseconds();
    if most <= 0 {
        return nominal;
    }
    let mut hash = Sha256::new();
    hash.update(schedule.as_bytes());
    hash.update(nominal.timestamp_millis().to_be_bytes());
    let digest: [u8; 32] = hash.finalize().into();
    let mut first = [0u8; 8];
    first.copy_from_slice(&digest[..8]);
    let later = u64::from_be_bytes(first) % most.unsigned_abs();
    nominal.checked_add_signed(TimeDelta::milliseconds(later as i64)).unwrap_or(nominal)
}

/// Whole intervals from `start` to `instant`, which is not before it.
fn steps(start: DateTime<Utc>, every: TimeDelta, instant: DateTime<Utc>) -> i64 {
    (instant - start).num_milliseconds().div_euclid(every.num_milliseconds())
}

fn step(start: DateTime<Utc>, every: TimeDelta, n: i64) -> Option<DateTime<Utc>> {
    let later = every.num_milliseconds().checked_mul(n).and_then(TimeDelta::try_milliseconds)?;
    start.checked_add_signed(later)
}

/// An instant in milliseconds, where times are counted at all.
fn counted(field: &str, instant: DateTime<Utc>) -> Result<DateTime<Utc>, Vec<Fault>> {
    let (first, last) = (YEARS.start(), YEARS.end());
    match YEARS.contains(&instant.year()) {
        true => Ok(instant.trunc_subsecs(3)),
        false => Err(vec![fault(field, format!("must be in the years {first} to {last}, is {instant}"))]),
    }
}

fn cron_of(text: &str) -> Result<Cron, Fault> {
    if text.len() > 200 {
        return Err(fault("spec.cron", format!("has {} characters, the limit is 200", text.len())));
    }
    let told = "five fields (minute, hour, day of the month, month, day of the week), or six with seconds first";
    Cron::from_str(text)
        .map_err(|error| fault("spec.cron", format!("`{text}` is no cron expression of {told}: {error}")))
}

fn zone_of(name: &str) -> Result<Tz, Fault> {
    Tz::from_str(name).map_err(|_| {
        let near = chrono_tz::TZ_VARIANTS.iter().map(|zone| zone.name());
        let near = near.max_by(|a, b| strsim::jaro(a, name).total_cmp(&strsim::jaro(b, name))).unwrap_or("UTC");
        let name = crate::executor::clean(name);
        fault("spec.time_zone", format!("`{name}` is no time zone of the IANA database; did you mean `{near}`?"))
    })
}

fn fault(field: &str, message: String) -> Fault {
    Fault { field: field.to_owned(), message }
}

#[cfg(test)]
mod tests;
