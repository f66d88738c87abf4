//! Since when Temporal does not answer, as the processes of the bridge wrote it down.

use chrono::{DateTime, TimeDelta, Utc};

use crate::interaction::Side;
use crate::ledger::{Ledger, LedgerError, within};
use crate::observer::{Disturbance, Log};

/// Longer outages began so long ago, or earlier.
const BACK: TimeDelta = TimeDelta::days(7);
/// What was noted within so long goes on: it is noted every three seconds at least, and written with every beat.
const GOES_ON: TimeDelta = TimeDelta::seconds(6);
/// Stretches with no more between them are one outage: a relay may have been started anew meanwhile.
const BETWEEN: TimeDelta = TimeDelta::seconds(15);
/// One question without an answer is none.
const LEAST: TimeDelta = TimeDelta::seconds(2);

/// Since when Temporal has not answered any relay; none where it answers, or no relay is there to ask it.
pub async fn temporal_away_since(ledger: &Ledger) -> Result<Option<DateTime<Utc>>, LedgerError> {
    let now: DateTime<Utc> = within(sqlx::query_scalar("select clock_timestamp()").fetch_one(ledger.pool())).await?;
    let noted = Log::new(ledger.pool().clone()).disturbances(now - BACK).await?;
    Ok(since(&noted, now))
}

/// The beginning of what goes on at `now`: stretches that follow each other closely are one, whoever noted them.
fn since(noted: &[Disturbance], now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let mut of_temporal: Vec<_> =
        noted.iter().filter(|d| d.side == Side::Temporal && d.what == crate::observer::NO_ANSWER).collect();
    of_temporal.sort_by_key(|d| std::cmp::Reverse(d.ended_at));
    let last = of_temporal.first().filter(|last| last.ended_at >= now - GOES_ON)?;
    let mut since = last.began_at;
    for stretch in &of_temporal {
        if stretch.ended_at < since - BETWEEN {
            break;
        }
        since = since.min(stretch.began_at);
    }
    (last.ended_at - since >= LEAST).then_some(since)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noted(began: i64, ended: i64) -> Disturbance {
        let at = |seconds| DateTime::UNIX_EPOCH + TimeDelta::seconds(seconds);
        let what = crate::observer::NO_ANSWER.to_owned();
        Disturbance { side: Side::Temporal, began_at: at(began), ended_at: at(ended), what }
    }

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::seconds(seconds)
    }

    #[test]
    fn stretches_that_follow_each_other_are_one_outage_and_an_earlier_one_is_not() {
        let all = [noted(0, 100), noted(500, 900), noted(520, 700), noted(905, 1_000)];
        assert_eq!(since(&all, at(1_003)), Some(at(500)));
        assert_eq!(since(&all, at(1_100)), None, "it is over");
        assert_eq!(since(&[], at(0)), None);
        assert_eq!(since(&[noted(0, 1)], at(2)), None, "one question without an answer");
    }

    #[test]
    fn deliveries_that_fail_and_the_other_side_are_no_outage_of_temporal() {
        let failing = Disturbance { what: "deliveries fail".into(), ..noted(0, 100) };
        let other = Disturbance { side: Side::Postgres, ..noted(0, 100) };
        assert_eq!(since(&[failing, other], at(100)), None);
    }
}
