use super::*;
use proptest::prelude::*;

fn cron(expression: &str, zone: &str) -> Spec {
    Spec::Cron(ByClock { cron: expression.to_owned(), time_zone: zone.to_owned() })
}

fn every(ms: i64, starts_at: &str) -> Spec {
    Spec::Every(Every { every_ms: ms, starts_at: at(starts_at) })
}

fn at(text: &str) -> DateTime<Utc> {
    DateTime::parse_from_rfc3339(text).unwrap().with_timezone(&Utc)
}

fn next(spec: &Spec, after: &str, n: usize) -> Vec<String> {
    let zone: Tz = match spec {
        Spec::Cron(by) => by.time_zone.parse().unwrap(),
        _ => Tz::UTC,
    };
    let next = spec.read().unwrap().next(at(after), n);
    next.iter().map(|at| at.with_timezone(&zone).format("%F %T %:z").to_string()).collect()
}

#[test]
fn a_fixed_time_inside_a_gap_runs_right_after_it_and_inside_a_fold_once() {
    let daily = cron("30 2 * * *", "Europe/Berlin");
    assert_eq!(next(&daily, "2026-03-28T12:00:00Z", 2), ["2026-03-29 03:00:00 +02:00", "2026-03-30 02:30:00 +02:00"]);
    assert_eq!(next(&daily, "2026-10-24T12:00:00Z", 2), ["2026-10-25 02:30:00 +02:00", "2026-10-26 02:30:00 +01:00"]);
}

#[test]
fn what_comes_every_hour_leaves_out_the_gap_and_comes_twice_in_the_fold() {
    let hourly = cron("0 * * * *", "America/New_York");
    assert_eq!(next(&hourly, "2026-03-08T06:30:00Z", 2), ["2026-03-08 03:00:00 -04:00", "2026-03-08 04:00:00 -04:00"]);
    let folded = next(&hourly, "2026-11-01T04:30:00Z", 3);
    assert_eq!(folded, ["2026-11-01 01:00:00 -04:00", "2026-11-01 01:00:00 -05:00", "2026-11-01 02:00:00 -05:00"]);
}

#[test]
fn a_gap_at_midnight_and_one_of_half_an_hour_lose_no_day() {
    let midnight = cron("0 0 * * *", "Africa/Cairo");
    let days = next(&midnight, "2026-04-22T12:00:00Z", 3);
    assert_eq!(days, ["2026-04-23 00:00:00 +02:00", "2026-04-24 01:00:00 +03:00", "2026-04-25 00:00:00 +03:00"]);
    let half = cron("10 2 * * *", "Australia/Lord_Howe");
    let days = next(&half, "2026-10-03T00:00:00Z", 3);
    assert_eq!(days, ["2026-10-04 02:30:00 +11:00", "2026-10-05 02:10:00 +11:00", "2026-10-06 02:10:00 +11:00"]);
}

#[test]
fn leap_days_and_ends_of_months_come_when_they_come() {
    assert_eq!(
        next(&cron("0 0 29 2 *", "UTC"), "2026-01-01T00:00:00Z", 2),
        ["2028-02-29 00:00:00 +00:00", "2032-02-29 00:00:00 +00:00"]
    );
    assert_eq!(
        next(&cron("0 12 31 * *", "UTC"), "2026-01-31T12:00:00Z", 2),
        ["2026-03-31 12:00:00 +00:00", "2026-05-31 12:00:00 +00:00"]
    );
    assert_eq!(
        next(&cron("0 0 L * *", "UTC"), "2028-02-01T00:00:00Z", 2),
        ["2028-02-29 00:00:00 +00:00", "2028-03-31 00:00:00 +00:00"]
    );
}

#[test]
fn an_interval_keeps_its_phase_whatever_its_length() {
    let spec = every(3_600_000, "2026-01-01T00:07:00Z");
    assert_eq!(next(&spec, "2026-01-05T10:30:00Z", 2), ["2026-01-05 11:07:00 +00:00", "2026-01-05 12:07:00 +00:00"]);
    let spec = every(1_800_000, "2026-01-01T00:07:00Z");
    assert_eq!(next(&spec, "2026-01-05T10:30:00Z", 1), ["2026-01-05 10:37:00 +00:00"]);
    let early = next(&spec, "2025-06-01T00:00:00Z", 1);
    assert_eq!(early, ["2026-01-01 00:07:00 +00:00"], "nothing before it starts");
}

#[test]
fn faults_name_what_never_fires_and_every_field_at_once() {
    let now = at("2026-11-22T00:00:00Z");
    let fields = |spec: &Spec, jitter| {
        spec.faults(TimeDelta::milliseconds(jitter), now).into_iter().map(|fault| fault.field).collect::<Vec<_>>()
    };
    assert_eq!(fields(&cron("0 0 30 2 *", "UTC"), 0), ["spec.cron"]);
    assert_eq!(fields(&cron("0 0 1 1 * * 2020", "UTC"), 0), ["spec.cron"]);
    assert_eq!(fields(&cron("every day", "Europe/Berlim"), 0), ["spec.cron", "spec.time_zone"]);
    assert_eq!(fields(&every(0, "2026-01-01T00:00:00Z"), 0), ["spec.every_ms"]);
    assert_eq!(fields(&every(-5, "2026-01-01T00:00:00Z"), 0), ["spec.every_ms"]);
    assert_eq!(fields(&every(i64::MAX, "2026-01-01T00:00:00Z"), 0), ["spec.every_ms"]);
    assert_eq!(fields(&every(60_000, "2026-01-01T00:00:00Z"), 60_000), ["jitter_ms"]);
    assert_eq!(fields(&every(60_000, "2026-01-01T00:00:00Z"), -1), ["jitter_ms"]);
    assert_eq!(fields(&cron("*/5 * * * *", "UTC"), 299_999), [""; 0]);
    assert_eq!(fields(&cron("*/5 * * * *", "UTC"), 300_000), ["jitter_ms"]);
    assert_eq!(fields(&Spec::Once(Once { at: at("2026-11-21T00:00:00Z") }), 0), ["spec.at"]);
    let zone = cron("0 0 * * *", "Europe/Berlim").read().unwrap_err();
    assert!(zone[0].message.contains("did you mean `Europe/Berlin`?"), "{zone:?}");
}

fn specs() -> impl Strategy<Value = Spec> {
    let zones = prop::sample::select(vec![
        "UTC",
        "Europe/Berlin",
        "America/New_York",
        "Africa/Cairo",
        "Asia/Kathmandu",
        "Australia/Lord_Howe",
    ]);
    let field = |least: u32, most: u32| {
        prop_oneof![
            Just("*".to_owned()),
            (1..=most / 2 + 1).prop_map(|n| format!("*/{n}")),
            (least..=most).prop_map(|n| n.to_string()),
            (least..=most, least..=most).prop_map(|(a, b)| format!("{},{}", a.min(b), a.max(b))),
        ]
    };
    let by_clock = (field(0, 59), field(0, 23), field(1, 28), field(1, 12), field(0, 6), zones)
        .prop_map(|(m, h, d, month, week, zone)| cron(&format!("{m} {h} {d} {month} {week}"), zone));
    let interval = (1_000..10_000_000_i64, 0..100_000_000_000_i64).prop_map(|(every_ms, start)| {
        Spec::Every(Every { every_ms, starts_at: at("2024-01-01T00:00:00Z") + TimeDelta::milliseconds(start) })
    });
    prop_oneof![by_clock, interval]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn times_only_go_forward_and_looking_back_finds_what_looking_ahead_named(spec in specs(), from in 0..120_000_000_000_i64) {
        let (times, from) = (spec.read().unwrap(), at("2024-06-01T00:00:00Z") + TimeDelta::milliseconds(from));
        let next = times.next(from, 12);
        prop_assert_eq!(next.len(), 12);
        let mut before = from;
        for time in next {
            prop_assert!(time > before, "{} after {}", time, before);
            prop_assert_eq!(times.until(time), Some(time), "a time itself");
            let middle = before + (time - before) / 2;
            if let Some(last) = times.until(middle) {
                prop_assert!(last <= middle);
                prop_assert_eq!(times.after(last), Some(time), "nothing lies between {} and {}", last, time);
            }
            before = time;
        }
    }

    #[test]
    fn jitter_is_the_same_for_every_scheduler_and_stays_below_its_bound(id: u128, ms in 0..4_000_000_000_000_i64, jitter in 0..100_000_i64) {
        let (id, nominal) = (Uuid::from_u128(id), DateTime::from_timestamp_millis(ms).unwrap());
        let fires = jittered(id, nominal, TimeDelta::milliseconds(jitter));
        prop_assert_eq!(fires, jittered(id, nominal, TimeDelta::milliseconds(jitter)));
        prop_assert!(fires >= nominal && (fires - nominal).num_milliseconds() < jitter.max(1));
    }

    #[test]
    fn no_expression_and_no_zone_panics(expression in ".{0,40}", zone in ".{0,20}") {
        let spec = Spec::Cron(ByClock { cron: expression, time_zone: zone });
        let _ = spec.read();
    }
}
