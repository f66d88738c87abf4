use super::*;
use crate::schedule::times::{Every, Once, Spec};
use proptest::prelude::*;

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_900_000_000 + seconds, 0).unwrap()
}

/// Every ten seconds.
fn tens() -> Times {
    Spec::Every(Every { every_ms: 10_000, starts_at: at(0) }).read().unwrap()
}

fn standing(times: &Times, overlap: Overlap, nominal: i64, now: i64) -> Standing<'_> {
    Standing {
        id: Uuid::from_u128(7),
        times,
        overlap,
        catch_up: CatchUp::Latest,
        window: TimeDelta::seconds(3_600),
        jitter: TimeDelta::zero(),
        nominal: Some(at(nominal)),
        triggers: &[],
        unended: 0,
        cancelling: false,
        last_at: None,
        last_end: None,
        paused: false,
        most: AT_A_TIME,
        now: at(now),
    }
}

fn runs(plan: &Plan) -> Vec<i64> {
    let seconds = |due: &Due| match due {
        Due::Time(time) => (*time - at(0)).num_seconds(),
        Due::Trigger(_) => -1,
    };
    plan.runs.iter().map(seconds).collect()
}

fn skips(plan: &Plan) -> Vec<(i64, i64, i64, Reason)> {
    let seconds = |time: Option<DateTime<Utc>>| time.map_or(-1, |time| (time - at(0)).num_seconds());
    plan.skipped.iter().map(|s| (seconds(s.from), seconds(s.to), s.times, s.reason)).collect()
}

#[test]
fn what_is_due_runs_and_the_next_time_is_looked_for_after_it() {
    let times = tens();
    let plan = standing(&times, Overlap::Skip, 10, 10).plan();
    assert_eq!((runs(&plan), plan.skipped.len()), (vec![10], 0));
    assert_eq!((plan.nominal, plan.wake_at), (Some(at(20)), Some(at(20))));
    let early = standing(&times, Overlap::Skip, 20, 15).plan();
    assert_eq!((early.runs.len(), early.wake_at), (0, Some(at(20))));
}

#[test]
fn of_missed_times_the_latest_runs_or_all_do_within_the_window() {
    let times = tens();
    let late = standing(&times, Overlap::QueueAll, 10, 65);
    let plan = late.plan();
    assert_eq!((runs(&plan), skips(&plan)), (vec![60], vec![(10, 50, 5, Reason::Superseded)]));
    let all = Standing { catch_up: CatchUp::All, ..late.clone() }.plan();
    assert_eq!((runs(&all), all.nominal), (vec![10, 20, 30, 40, 50, 60], Some(at(70))));
    let window = Standing { catch_up: CatchUp::All, window: TimeDelta::seconds(30), ..late.clone() }.plan();
    assert_eq!((runs(&window), skips(&window)), (vec![40, 50, 60], vec![(10, 30, 3, Reason::Missed)]));
    let narrow = Standing { window: TimeDelta::seconds(1), ..late }.plan();
    assert_eq!(
        (runs(&narrow), skips(&narrow), narrow.wake_at),
        (vec![], vec![(10, 60, 6, Reason::Missed)], Some(at(70)))
    );
}

#[test]
fn an_outage_of_a_year_is_caught_up_in_bounded_steps() {
    let times = Spec::Every(Every { every_ms: 1_000, starts_at: at(0) }).read().unwrap();
    let year = 31_536_000;
    let late = Standing { window: TimeDelta::days(400), ..standing(&times, Overlap::QueueAll, 1, year) };
    let plan = late.plan();
    assert_eq!((runs(&plan), skips(&plan)), (vec![year], vec![(1, year - 1, year - 1, Reason::Superseded)]));
    let all = Standing { catch_up: CatchUp::All, ..late }.plan();
    assert_eq!((all.runs.len(), all.nominal), (AT_A_TIME, Some(at(101))));
    assert_eq!(all.wake_at, Some(at(year)), "the rest comes at once, and after what others have due");
}

#[test]
fn an_unended_run_is_in_the_way_as_the_policy_says() {
    let times = tens();
    let one = |overlap| Standing { unended: 1, ..standing(&times, overlap, 10, 10) };
    assert_eq!(skips(&one(Overlap::Skip).plan()), [(10, 10, 1, Reason::Overlap)]);
    assert_eq!(runs(&one(Overlap::QueueOne).plan()), [10]);
    assert_eq!(runs(&one(Overlap::QueueAll).plan()), [10]);
    let two = Standing { unended: 2, ..one(Overlap::QueueOne) };
    assert_eq!(skips(&two.plan()), [(10, 10, 1, Reason::Overlap)]);
    let full = Standing { unended: MOST_UNENDED, ..one(Overlap::QueueAll) };
    assert_eq!(skips(&full.plan()), [(10, 10, 1, Reason::QueueFull)]);
}

#[test]
fn the_old_run_is_cancelled_before_the_new_one_is_enqueued() {
    let times = tens();
    let first = Standing { unended: 1, ..standing(&times, Overlap::CancelOld, 10, 35) };
    let plan = first.plan();
    assert!(plan.cancel && plan.runs.is_empty() && plan.nominal == Some(at(10)), "{plan:?}");
    let then = Standing { cancelling: true, catch_up: CatchUp::All, ..first }.plan();
    assert_eq!((runs(&then), skips(&then)), (vec![30], vec![(10, 20, 2, Reason::Superseded)]));
    let idle = Standing { unended: 1, ..standing(&times, Overlap::CancelOld, 40, 35) }.plan();
    assert!(!idle.cancel, "nothing is cancelled before something is due");
    let missed = Standing { unended: 1, window: TimeDelta::seconds(1), ..standing(&times, Overlap::CancelOld, 10, 35) };
    let missed = missed.plan();
    assert!(!missed.cancel, "nor for what does not run");
    assert_eq!((runs(&missed), skips(&missed)), (vec![], vec![(10, 30, 3, Reason::Missed)]));
    let stuck = Standing { unended: MOST_UNENDED, cancelling: true, ..standing(&times, Overlap::CancelOld, 10, 10) };
    assert_eq!(skips(&stuck.plan()), [(10, 10, 1, Reason::QueueFull)]);
}

#[test]
fn what_has_no_room_is_skipped_at_once_and_a_bounded_look_leaves_the_rest() {
    let times = tens();
    let full = Standing { unended: 1, catch_up: CatchUp::All, ..standing(&times, Overlap::QueueOne, 10, 3_000) };
    let plan = full.plan();
    assert_eq!((runs(&plan), skips(&plan)), (vec![10], vec![(20, 3_000, 299, Reason::Overlap)]));
    assert_eq!(plan.wake_at, Some(at(3_010)));
    let bounded = Standing { most: 3, overlap: Overlap::QueueAll, ..full };
    let plan = bounded.plan();
    assert_eq!((runs(&plan), plan.nominal, plan.wake_at), (vec![10, 20, 30], Some(at(40)), Some(at(3_000))));
    let triggers = ["a".to_owned(), "b".to_owned()];
    let plan = Standing { most: 1, triggers: &triggers, paused: true, ..bounded }.plan();
    assert_eq!((plan.runs, plan.triggers), (vec![Due::Trigger("a".to_owned())], vec!["b".to_owned()]));
    assert_eq!(plan.wake_at, Some(at(3_000)), "the other trigger comes at once");
}

#[test]
fn after_the_last_run_the_next_time_counts_from_its_end() {
    let times = tens();
    let fired = standing(&times, Overlap::AfterLast, 10, 12).plan();
    assert_eq!((runs(&fired), fired.nominal), (vec![10], None));
    let waiting =
        Standing { nominal: None, unended: 1, last_at: Some(at(12)), ..standing(&times, Overlap::AfterLast, 0, 52) };
    let plan = waiting.plan();
    assert_eq!((plan.runs.len(), plan.nominal, plan.wake_at), (0, None, Some(at(56))), "a tenth of what it has taken");
    let ended = Standing { unended: 0, last_end: Some(at(53)), now: at(54), ..waiting }.plan();
    assert_eq!((ended.runs.len(), ended.nominal, ended.wake_at), (0, Some(at(63)), Some(at(63))));
}

#[test]
fn a_trigger_runs_now_also_while_paused_and_changes_no_time() {
    let times = tens();
    let triggers = ["a".to_owned(), "b".to_owned()];
    let paused = Standing { triggers: &triggers, paused: true, ..standing(&times, Overlap::Skip, 10, 35) };
    let plan = paused.plan();
    assert_eq!(plan.runs, [Due::Trigger("a".to_owned())]);
    assert_eq!((skips(&plan), plan.nominal, plan.wake_at), (vec![(-1, -1, 1, Reason::Overlap)], Some(at(10)), None));
    let both = Standing { paused: false, overlap: Overlap::QueueAll, ..paused }.plan();
    assert_eq!(runs(&both), [-1, -1, 30]);
}

#[test]
fn a_one_off_runs_once() {
    let times = Spec::Once(Once { at: at(10) }).read().unwrap();
    let plan = standing(&times, Overlap::Skip, 10, 11).plan();
    assert_eq!((runs(&plan), plan.nominal, plan.wake_at), (vec![10], None, None));
    assert_eq!(Standing { nominal: None, ..standing(&times, Overlap::Skip, 0, 99) }.plan(), Plan::default());
}

#[test]
fn what_a_pause_has_passed_over_is_told_and_the_phase_is_kept() {
    let (skipped, next) = passed_over(&tens(), Some(at(10)), at(47));
    let skipped = skipped.unwrap();
    assert_eq!((skipped.from, skipped.to, skipped.times, next), (Some(at(10)), Some(at(40)), 4, Some(at(50))));
    assert_eq!(passed_over(&tens(), Some(at(50)), at(47)), (None, Some(at(50))));
}

proptest! {
    /// Looked at at random moments, whatever happens to its runs meanwhile: each time is told exactly once, in order.
    #[test]
    fn every_time_runs_or_is_skipped_exactly_once(
        looks in prop::collection::vec((1..200_i64, 0..3_usize), 1..40),
        overlap in prop::sample::select(vec![Overlap::Skip, Overlap::QueueOne, Overlap::QueueAll, Overlap::CancelOld]),
        all: bool, window in 10..500_i64, jitter in 0..10_i64,
    ) {
        let times = tens();
        let (mut now, mut nominal, mut told) = (0, Some(at(10)), Vec::new());
        for (passes, unended) in looks {
            now += passes;
            let due = Standing {
                catch_up: if all { CatchUp::All } else { CatchUp::Latest },
                window: TimeDelta::seconds(window), jitter: TimeDelta::seconds(jitter),
                nominal, unended, cancelling: true, ..standing(&times, overlap, 0, now)
            };
            let plan = due.plan();
            let mut now_told: Vec<i64> = runs(&plan);
            for (from, to, n, _) in skips(&plan) {
                prop_assert_eq!((to - from) / 10 + 1, n);
                now_told.extend((0..n).map(|i| from + i * 10));
            }
            now_told.sort_unstable();
            told.extend(now_told);
            nominal = plan.nominal;
            prop_assert!(plan.wake_at.unwrap() > at(now) || plan.runs.len() == AT_A_TIME, "it does not spin");
        }
        let wanted: Vec<i64> = (1..=told.len() as i64).map(|n| n * 10).collect();
        prop_assert_eq!(&told, &wanted);
        prop_assert!(told.last().is_none_or(|last| *last <= now));
        prop_assert!(told.len() as i64 >= (now - jitter) / 10, "nothing that is due is left");
    }
}
