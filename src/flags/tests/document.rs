use proptest::prelude::*;
use serde_json::{Value, json};

use super::{SHIPPED, live_by, live_where, with};
use crate::flags::{Document, DocumentBuilder};
use crate::interaction::Stage;

fn document(value: Value) -> Document {
    Document::parse(&value.to_string()).unwrap()
}

fn faults(value: Value) -> Vec<String> {
    faults_of(&value.to_string())
}

fn faults_of(text: &str) -> Vec<String> {
    Document::parse(text).unwrap_err().iter().map(ToString::to_string).collect()
}

fn built(builder: &DocumentBuilder) -> Document {
    builder.build().unwrap()
}

#[test]
fn the_shipped_file_turns_nobody_on() {
    assert_eq!(Document::parse(SHIPPED).unwrap().stage("acme", "sync"), Stage::Off);
}

#[test]
fn the_examples_of_the_readme_do_what_they_say() {
    let readme = include_str!("../../../flags/README.md");
    let examples = readme.split("```json").skip(1).map(|rest| rest.split("```").next().unwrap());
    let examples: Vec<_> = examples.map(|text| document(with(serde_json::from_str(text).unwrap()))).collect();
    let [accounts, one_kind, tenth] = &examples[..] else { panic!("three examples") };
    assert_eq!(accounts.stage("globex", "sync"), Stage::Shadow);
    assert_eq!(accounts.stage("initech", "sync"), Stage::Off);
    assert_eq!(one_kind.stage("acme", "webhook"), Stage::Live);
    assert_eq!(one_kind.stage("acme", "sync"), Stage::Off);
    let on = (0..10_000).filter(|n| tenth.stage(&format!("account-{n}"), "sync") == Stage::Shadow).count();
    assert!((900..1100).contains(&on), "{on} of 10000");
}

#[test]
fn a_kind_narrows_a_cutover() {
    let mut builder = DocumentBuilder::default();
    let document = built(builder.account(Stage::Shadow, "acme").kind(Stage::Live, "acme", "webhook"));
    assert_eq!(document.stage("acme", "webhook"), Stage::Live);
    assert_eq!(document.stage("acme", "sync"), Stage::Shadow);
    assert_eq!(document.stage("globex", "webhook"), Stage::Off);
}

#[test]
fn the_kill_switch_is_one_word_and_caps_everybody_at_shadow() {
    let mut builder = DocumentBuilder::default();
    let text = built(builder.account(Stage::Complete, "acme").everybody(Stage::Live)).text().to_owned();
    let mut value: Value = serde_json::from_str(&text).unwrap();
    value["features"][3]["enabled"] = json!(true);
    let killed = document(value);
    assert_eq!(killed.stage("acme", "sync"), Stage::Shadow);
    assert_eq!(killed.stage("globex", "sync"), Stage::Shadow);
}

#[test]
fn an_account_is_taken_off_a_stage_again() {
    let mut builder = DocumentBuilder::default();
    builder.account(Stage::Live, "acme").kind(Stage::Live, "acme", "sync").account(Stage::Shadow, "acme");
    assert_eq!(built(builder.without(Stage::Live, "acme")).stage("acme", "sync"), Stage::Shadow);
}

#[test]
fn a_segment_decides_like_its_constraints() {
    let mut value = live_by(json!({ "name": "default", "constraints": [], "segments": [7] }));
    let constraint = json!({ "contextName": "userId", "operator": "STR_STARTS_WITH", "values": ["eu-"] });
    value["segments"] = json!([{ "id": 7, "name": "pilots", "constraints": [constraint] }]);
    let document = document(value);
    assert_eq!(document.stage("eu-acme", "sync"), Stage::Live);
    assert_eq!(document.stage("us-acme", "sync"), Stage::Off);
}

#[test]
fn a_misspelt_constraints_field_is_refused_with_the_nearest_name() {
    let wrong = live_by(json!({ "name": "default", "constraint": [{ "contextName": "userId" }] }));
    assert_eq!(faults(wrong), ["features[1].strategies[0].constraint: unknown field, did you mean constraints?"]);
}

#[test]
fn three_faults_are_reported_at_once_each_with_its_place() {
    let mut wrong = live_where(json!({ "contextName": "accountId", "operator": "INN", "values": ["acme"] }));
    wrong["features"][2]["enabled"] = json!("yes");
    wrong["features"][0]["name"] = json!("crossover-shaddow");
    assert_eq!(
        faults(wrong),
        [
            "features[0].name: `crossover-shaddow` is none of the four flags, did you mean crossover-shadow?",
            "features[1].strategies[0].constraints[0].contextName: `accountId` isn't known when a flag is asked, \
         known are userId, kind",
            "features[1].strategies[0].constraints[0].operator: `INN` is no operator that a file may use, \
         did you mean IN?",
            "features[2].enabled: must be true or false, not a text",
        ]
    );
}

#[test]
fn broken_json_is_refused_with_line_and_column() {
    let broken = SHIPPED.replacen("\"enabled\": false,", "\"enabled\": false", 1);
    assert_eq!(faults_of(&broken), ["line 9, column 7: not JSON: expected `,` or `}`"]);
    assert_eq!(faults_of(""), ["line 1, column 0: not JSON: EOF while parsing a value"]);
}

#[test]
fn a_file_holds_exactly_the_four_flags() {
    let mut wrong = with(json!({ "name": "crossover-kill", "enabled": false, "strategies": [] }));
    wrong["features"][3]["name"] = json!("crossover-live");
    wrong["features"].as_array_mut().unwrap().push(json!({ "name": "new-ui", "enabled": false, "strategies": [] }));
    let found = faults(wrong);
    assert_eq!(found[0], "features[3].name: crossover-live comes twice");
    assert!(found[1].starts_with("features[4].name: `new-ui` is none of the four flags, known are crossover-shadow"));
    assert_eq!(found[2], "features: crossover-kill is missing; a file holds all four flags");
}

#[test]
fn a_field_written_twice_is_refused() {
    let twice = SHIPPED.replacen("\"strategies\": []", "\"strategies\": [], \"strategies\": []", 1);
    assert_eq!(faults_of(&twice), ["features[0].strategies: written twice; only one of them can be meant"]);
}

/// Each of these means "everybody", "nobody" or "whoever" to the evaluator.
#[test]
fn what_the_evaluator_would_forgive_is_refused() {
    let user = |operator: &str| json!({ "contextName": "userId", "operator": operator });
    let constrained = |operator: &str, field: &str, value: Value| {
        let mut constraint = user(operator);
        constraint[field] = value;
        live_where(constraint)
    };
    let rollout =
        |parameters: Value| live_by(json!({ "name": "flexibleRollout", "constraints": [], "parameters": parameters }));
    for (wrong, place) in [
        (with(json!({ "name": "crossover-live", "enabled": true, "strategies": [] })), "strategies: empty"),
        (with(json!({ "name": "crossover-live", "enabled": true })), "strategies: missing"),
        (live_by(json!({ "name": "default" })), "constraints: missing"),
        (live_by(json!({ "name": "default", "constraints": null })), "constraints: missing"),
        (live_by(json!({ "name": "default", "constraints": [], "disabled": true })), "disabled: unknown field"),
        (live_by(json!({ "name": "defualt", "constraints": [] })), "did you mean default?"),
        (live_by(json!({ "name": "applicationHostname", "constraints": [] })), "by account and kind alone"),
        (live_by(json!({ "name": "userWithId", "constraints": [] })), "parameters.userIds: missing"),
        (live_by(json!({ "name": "default", "constraints": [], "segments": [1] })), "no segment has the id 1"),
        (constrained("NOT_IN", "values", json!([])), "values: NOT_IN needs"),
        (constrained("NOT_IN", "value", json!("acme")), "values: NOT_IN needs"),
        (constrained("STR_CONTAINS", "values", json!([""])), "values[0]: an empty text"),
        (constrained("IN", "values", json!(["acme\\"])), "values[0]: the evaluator can't"),
        (constrained("NUM_LT", "value", json!("5 or true")), "value: must be a text that is a number"),
        (constrained("REGEX", "value", json!("(")), "operator: `REGEX` is no operator that a file may use"),
        (rollout(json!({ "rollout": "10%" })), "rollout: must be a text from 0 to 100"),
        (rollout(json!({ "rollout": "10", "stickiness": "random" })), "stickiness: must be"),
        (rollout(json!({ "rollout": "10", "groupId": "a\" or true" })), "groupId: must be"),
    ] {
        let found = faults(wrong.clone());
        assert!(found.iter().any(|fault| fault.contains(place)), "{place} not in {found:?} of {wrong}");
    }
}

#[test]
fn a_revision_names_the_text_of_its_document() {
    let document = Document::parse(SHIPPED).unwrap();
    assert_eq!(document.revision().len(), "file:".len() + 12);
    assert_eq!(document.revision(), Document::parse(SHIPPED).unwrap().revision());
    assert_ne!(document.revision(), Document::parse(&format!("{SHIPPED}\n")).unwrap().revision());
}

proptest! {
    /// Quotation marks, brackets and backslashes included: a name never means anything but itself.
    #[test]
    fn whoever_is_turned_on_is_on_and_nobody_else(
        account in r#"[a-c"\\\] ,]{1,6}"#, kind in r#"[a-c"\\\] ,]{1,6}"#, other in r#"[a-c"\\\] ,]{1,6}"#,
    ) {
        let Ok(document) = DocumentBuilder::default().kind(Stage::Live, &account, &kind).build() else {
            prop_assert!(account.ends_with('\\') || kind.ends_with('\\'));
            return Ok(());
        };
        prop_assert_eq!(document.stage(&account, &kind), Stage::Live);
        let expected = |on| if on { Stage::Live } else { Stage::Off };
        prop_assert_eq!(document.stage(&other, &kind), expected(other == account));
        prop_assert_eq!(document.stage(&account, &other), expected(other == kind));
    }
}
