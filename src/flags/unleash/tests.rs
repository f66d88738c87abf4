use std::time::Duration;

use serde_json::{Value, json};

use super::answer::Answer;
use super::judge::{Leave, Verdict, judge, pause};
use crate::flags::document::{Document, Flag};
use crate::flags::store::LastGood;
use crate::interaction::Stage;

const INSIST: Duration = Duration::from_secs(600);

/// What a real Unleash 7.5.1 answers after the import, with `acme` live.
fn told() -> Value {
    let feature = |name: &str, enabled: bool, constraints: Value| {
        json!({ "name": name, "type": "release", "enabled": enabled, "project": "default", "stale": false,
            "strategies": [{ "name": "default", "constraints": constraints, "parameters": {}, "variants": [] }],
            "variants": [], "description": "…", "impressionData": false })
    };
    let accounts = |names: &[&str]| json!([{ "values": names, "operator": "IN", "contextName": "userId" }]);
    json!({
        "version": 2,
        "features": [
            feature("crossover-shadow", true, accounts(&["crossover:nobody"])),
            feature("crossover-live", true, accounts(&["crossover:nobody", "acme"])),
            feature("crossover-complete", true, accounts(&["crossover:nobody"])),
            feature("crossover-kill", false, json!([])),
        ],
        "query": { "namePrefix": "crossover-", "environment": "development", "inlineSegmentConstraints": false },
        "segments": [],
        "meta": { "revisionId": 25, "etag": "\"498106dc:25:v1\"", "queryHash": "498106dc" },
    })
}

fn at(revision: u64, change: impl FnOnce(&mut Value)) -> Value {
    let mut value = told();
    value["meta"]["revisionId"] = json!(revision);
    change(&mut value);
    value
}

fn live(value: &mut Value) -> &mut Value {
    &mut value["features"][1]
}

fn leave() -> Leave {
    Leave { missing: Vec::new(), older: INSIST }
}

fn judged(value: &Value, in_force: Option<&Document>) -> Verdict {
    judge(&Answer::parse(&value.to_string()).unwrap(), in_force, &leave(), Duration::ZERO)
}

fn put(value: &Value, in_force: Option<&Document>) -> (Document, Option<String>) {
    match judged(value, in_force) {
        Verdict::Put(document, complaint) => (*document, complaint),
        other => panic!("{other:?}"),
    }
}

fn whole(value: &Value) -> Document {
    let (document, complaint) = put(value, None);
    assert_eq!(complaint, None);
    document
}

fn refused(value: &Value) -> String {
    match judged(value, None) {
        Verdict::Refuse(why) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_server_s_document_decides_and_is_a_file_s_document_too() {
    let document = whole(&told());
    assert_eq!(document.stage("acme", "sync"), Stage::Live);
    assert_eq!(document.stage("globex", "sync"), Stage::Off);
    assert!(document.revision().starts_with("unleash:25:"), "{}", document.revision());
    assert_eq!(document.server_revision(), Some(25));
    assert_eq!(Document::parse(document.text()).unwrap().stage("acme", "sync"), Stage::Live);
}

#[test]
fn a_stored_document_comes_back_under_its_revision_and_only_to_its_own_source() {
    let folder = tempfile::tempdir().unwrap();
    let stored = LastGood::of_server(folder.path(), "one");
    stored.store(&whole(&told())).unwrap();
    let (document, good_at) = stored.load().unwrap();
    assert_eq!(document.revision(), whole(&told()).revision());
    assert_eq!(document.server_revision(), Some(25));
    assert!(good_at <= chrono::Utc::now());
    assert!(LastGood::of_server(folder.path(), "another").load().is_err());
}

#[test]
fn what_stands_elsewhere_in_the_document_may_be_anything() {
    let strange = at(26, |value| {
        value["newField"] = json!({ "of": "a later Unleash" });
        value["version"] = json!(9);
        value["segments"] = json!([{ "id": "new", "who": "knows" }]);
        value["features"].as_array_mut().unwrap().push(json!({ "name": "checkout", "strategies": "moved" }));
        live(value)["lifecycle"] = json!({ "stage": "live" });
        live(value)["strategies"][0]["milestone"] = json!("a later Unleash");
    });
    assert_eq!(whole(&strange).stage("acme", "sync"), Stage::Live);
}

/// Each would mean everybody, nobody or whoever to the evaluator.
#[test]
fn what_would_change_the_meaning_inside_our_flags_is_refused_with_its_place() {
    type Change = fn(&mut Value);
    let cases: [(&str, Change); 9] = [
        ("strategies[0].name: `custom` is no strategy", |f| f["strategies"][0]["name"] = json!("custom")),
        ("constraints[0].operator: `REGEX`", |f| f["strategies"][0]["constraints"][0]["operator"] = json!("REGEX")),
        ("contextName: `region`", |f| f["strategies"][0]["constraints"][0]["contextName"] = json!("region")),
        ("negated: unknown field", |f| f["strategies"][0]["constraints"][0]["negated"] = json!(true)),
        ("values: IN needs", |f| f["strategies"][0]["constraints"][0]["values"] = json!([])),
        ("segments[0]: no segment has the id 7", |f| f["strategies"][0]["segments"] = json!([7])),
        ("strategies: empty on an enabled flag", |f| f["strategies"] = json!([])),
        ("dependencies: leave them out", |f| f["dependencies"] = json!([{ "feature": "checkout" }])),
        ("enabled: missing", |f| f["enabled"] = Value::Null),
    ];
    for (place, change) in cases {
        let why = refused(&at(26, |value| change(live(value))));
        assert!(why.contains("crossover-live") && why.contains(place), "{place} is not in {why}");
    }
}

#[test]
fn a_flag_that_can_t_be_used_keeps_its_last_definition_and_the_others_act_at_once() {
    let before = whole(&told());
    let (after, complaint) = put(
        &at(26, |value| {
            live(value)["strategies"][0]["name"] = json!("custom");
            value["features"][3]["enabled"] = json!(true);
        }),
        Some(&before),
    );
    assert_eq!(after.stage("acme", "sync"), Stage::Shadow, "live as before, and the kill switch caps it");
    assert!(complaint.unwrap().contains("crossover-live.strategies[0].name"));
}

#[test]
fn a_missing_flag_keeps_its_last_definition_until_its_absence_is_accepted_and_a_disabled_one_acts_at_once() {
    let before = whole(&told());
    let without = at(26, |value| drop(value["features"].as_array_mut().unwrap().remove(1)));
    let (after, complaint) = put(&without, Some(&before));
    assert_eq!(after.stage("acme", "sync"), Stage::Live);
    assert!(complaint.unwrap().contains("crossover-live is missing"));
    // Still so after a second answer, which is judged by the first.
    assert_eq!(put(&without, Some(&after)).0.stage("acme", "sync"), Stage::Live);
    assert!(refused(&without).contains("crossover-live is missing"), "nothing is known of it");

    let accepting = Leave { missing: vec![Flag::Live], ..leave() };
    let answer = Answer::parse(&without.to_string()).unwrap();
    let Verdict::Put(accepted, None) = judge(&answer, Some(&before), &accepting, Duration::ZERO) else { panic!() };
    assert_eq!(accepted.stage("acme", "sync"), Stage::Off);

    let disabled = at(26, |value| live(value)["enabled"] = json!(false));
    assert_eq!(put(&disabled, Some(&before)).0.stage("acme", "sync"), Stage::Off);
}

#[test]
fn a_document_without_any_of_the_four_is_none() {
    for (text, why) in [
        (r#"{"version":2,"features":[]}"#, "0 features and none of the four"),
        (r#"{"version":2,"features":[{"name":"checkout"}]}"#, "1 features and none of the four"),
        ("{}", "no list `features`"),
        ("[]", "no list `features`"),
        ("<html>", "isn't JSON"),
        ("", "isn't JSON"),
    ] {
        let error = Answer::parse(text).unwrap_err();
        assert!(error.contains(why), "{text}: {error}");
    }
}

#[test]
fn an_older_revision_has_to_insist() {
    let before = whole(&told());
    let older = at(24, |value| live(value)["enabled"] = json!(false));
    let answer = Answer::parse(&older.to_string()).unwrap();
    let judged_after = |older_for| judge(&answer, Some(&before), &leave(), older_for);
    for early in [Duration::ZERO, INSIST - Duration::from_millis(1)] {
        let Verdict::Older(why) = judged_after(early) else { panic!("believed after {early:?}") };
        assert!(why.contains("revision 24, older than 25") && why.contains("10m (flags.accept_older)"), "{why}");
    }
    let Verdict::Put(document, None) = judged_after(INSIST) else { panic!("not believed") };
    assert_eq!((document.stage("acme", "sync"), document.server_revision()), (Stage::Off, Some(24)));
    let at_once = Leave { older: Duration::ZERO, ..leave() };
    assert!(matches!(judge(&answer, Some(&before), &at_once, Duration::ZERO), Verdict::Put(..)));
}

#[test]
fn the_same_revision_with_other_flags_is_another_document() {
    let before = whole(&told());
    let other = whole(&at(25, |value| live(value)["enabled"] = json!(false)));
    assert_ne!(before.revision(), other.revision());
    assert_eq!(before.revision(), whole(&at(25, |value| value["features"][0]["description"] = json!("?"))).revision());
}

#[test]
fn a_segment_joins_its_strategy_and_a_disabled_strategy_counts_for_nothing() {
    let segmented = whole(&at(26, |value| {
        value["segments"] = json!([{ "id": 3, "name": "kinds", "constraints":
            [{ "contextName": "kind", "operator": "IN", "values": ["sync"], "inverted": false, "caseInsensitive": false,
                "value": "" }] }]);
        live(value)["strategies"][0]["segments"] = json!([3]);
    }));
    assert_eq!(segmented.stage("acme", "sync"), Stage::Live);
    assert_eq!(segmented.stage("acme", "webhook"), Stage::Off);

    let off = whole(&at(26, |value| live(value)["strategies"][0]["disabled"] = json!(true)));
    assert_eq!(off.stage("acme", "sync"), Stage::Off);
    assert_eq!(off.stage("globex", "sync"), Stage::Off, "no strategy that counts is nobody, not everybody");
}

#[test]
fn the_kill_switch_is_on_when_it_is_on_whatever_its_strategies() {
    let killed = whole(&at(26, |value| {
        value["features"][3]["enabled"] = json!(true);
        value["features"][3]["strategies"] = json!([]);
    }));
    assert_eq!(killed.stage("acme", "sync"), Stage::Shadow);
}

#[test]
fn questions_come_within_the_interval_and_after_failures_ever_more_rarely() {
    let second = Duration::from_secs(1);
    assert_eq!(pause(second, 0, 1.0), second);
    assert!(pause(second, 0, 0.0) < second);
    assert_eq!(pause(second, 3, 1.0), 8 * second);
    assert_eq!(pause(second, 40, 1.0), 30 * second);
    assert_eq!(pause(90 * second, 40, 1.0), 90 * second, "never more often than asked for");
}
