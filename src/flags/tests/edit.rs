use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::json;

use super::{SHIPPED, live_by, with};
use crate::flags::edit::{Known, Refusal, Wish};
use crate::flags::{Document, DocumentBuilder, Flag};
use crate::interaction::Stage;

fn wish(account: &str, kind: Option<&str>, stage: Stage) -> Wish {
    Wish { account: account.to_owned(), kind: kind.map(str::to_owned), stage }
}

fn plan(document: &Document, wish: &Wish) -> Result<Document, Refusal> {
    document.plan(wish, &Known::default()).map(|plan| plan.after)
}

fn parsed(value: &serde_json::Value) -> Document {
    Document::parse(&value.to_string()).unwrap()
}

#[test]
fn a_cutover_turns_shadow_on_too_so_that_the_way_back_is_one_step() {
    let document = Document::parse(SHIPPED).unwrap();
    let live = document.plan(&wish("acme", None, Stage::Live), &Known::default()).unwrap();
    let flags: Vec<Flag> = live.changes.iter().map(|change| change.flag()).collect();
    assert_eq!(flags, [Flag::Shadow, Flag::Shadow, Flag::Live, Flag::Live]);
    assert_eq!((live.from, live.after.stage("acme", "sync")), (Stage::Off, Stage::Live));
    let back = live.after.plan(&wish("acme", None, Stage::Shadow), &Known::default()).unwrap();
    assert_eq!(back.changes.len(), 1, "{:?}", back.changes);
    assert_eq!(back.after.stage("acme", "sync"), Stage::Shadow);
    assert!(back.after.plan(&wish("acme", None, Stage::Shadow), &Known::default()).unwrap().changes.is_empty());
}

#[test]
fn what_is_not_touched_stays_as_it_was_written() {
    let text = SHIPPED.replacen(
        "\"enabled\": false,\n      \"strategies\": []",
        "\"enabled\":   true,\n      \"strategies\": [\n        { \"constraints\": [ {\"operator\":\"IN\",  \"contextName\":\"userId\", \"values\": [\n          \"globex\",\n          \"initech\"\n        ] } ], \"name\": \"default\" }\n      ]",
        1,
    );
    let document = Document::parse(&text).unwrap();
    let added = plan(&document, &wish("acme", None, Stage::Shadow)).unwrap();
    assert_eq!(added.text(), text.replacen("\"initech\"\n", "\"initech\",\n          \"acme\"\n", 1));
    let removed = plan(&added, &wish("acme", None, Stage::Off)).unwrap();
    assert_eq!(removed.text(), text);
}

#[test]
fn the_shipped_file_comes_back_to_the_letter() {
    let document = Document::parse(SHIPPED).unwrap();
    let mut now = Document::parse(SHIPPED).unwrap();
    for stage in [Stage::Shadow, Stage::Live, Stage::Complete, Stage::Live, Stage::Shadow, Stage::Off] {
        now = plan(&now, &wish("acme", None, stage)).unwrap();
        assert_eq!(now.stage("acme", "sync"), stage);
    }
    assert_eq!(now.text(), document.text());
}

#[test]
fn one_kind_leaves_a_whole_account_and_comes_back() {
    let document =
        DocumentBuilder::default().account(Stage::Shadow, "acme").account(Stage::Live, "acme").build().unwrap();
    let apart = plan(&document, &wish("acme", Some("webhook"), Stage::Shadow)).unwrap();
    assert_eq!(apart.stage("acme", "webhook"), Stage::Shadow);
    assert_eq!(apart.stage("acme", "sync"), Stage::Live);
    let again = plan(&apart, &wish("acme", Some("webhook"), Stage::Live)).unwrap();
    assert_eq!(again.stage("acme", "webhook"), Stage::Live);
}

#[test]
fn on_a_server_an_account_that_two_commands_added_at_once_is_taken_out_of_the_second_strategy() {
    let of = |kind: &str, accounts: &[&str]| {
        json!({ "name": "default", "constraints": [
            { "contextName": "userId", "operator": "IN", "values": accounts },
            { "contextName": "kind", "operator": "IN", "values": [kind] } ] })
    };
    let mut flags: serde_json::Value = serde_json::from_str(SHIPPED).unwrap();
    let shadow =
        flags["features"].as_array_mut().unwrap().iter_mut().find(|f| f["name"] == Flag::Shadow.name()).unwrap();
    shadow["enabled"] = json!(true);
    shadow["strategies"] = json!([of("webhook", &["acme"]), of("sync", &["acme"]), of("webhook", &["globex", "acme"])]);
    let (document, known) = (parsed(&flags), Known::default());
    let asked = wish("acme", Some("webhook"), Stage::Shadow);
    let planned = document.plan_on_server(&asked, &known).unwrap();
    let said: Vec<String> = planned.changes.iter().map(ToString::to_string).collect();
    assert_eq!(said, ["crossover-shadow: remove acme from strategy 3 (1 accounts then)"]);
    assert_eq!((planned.from, planned.after.stage("acme", "webhook")), (Stage::Shadow, Stage::Shadow));
    assert!(planned.after.plan_on_server(&asked, &known).unwrap().changes.is_empty());
    // A file is changed by one command at a time: what is listed twice there is meant.
    assert!(document.plan(&asked, &known).unwrap().changes.is_empty());
}

#[test]
fn a_user_with_id_strategy_keeps_its_form() {
    let strategy = json!({ "name": "userWithId", "constraints": [], "parameters": { "userIds": "acme, globex" } });
    let document = parsed(&live_by(strategy));
    let plan = plan(&document, &wish("acme", None, Stage::Off)).unwrap();
    assert!(plan.text().contains(r#""userIds":"globex""#), "{}", plan.text());
}

#[test]
fn what_another_strategy_holds_is_refused_and_named() {
    for (strategy, named) in [
        (json!({ "name": "default", "constraints": [] }), "strategy 1 (default: everybody)"),
        (
            json!({ "name": "flexibleRollout", "constraints": [], "parameters": { "rollout": "99", "stickiness": "userId" } }),
            "strategy 1 (flexibleRollout: 99 %)",
        ),
        (
            json!({ "name": "default", "constraints": [{ "contextName": "userId", "operator": "STR_STARTS_WITH", "values": ["ac"] }] }),
            "strategy 1 (default: userId STR_STARTS_WITH)",
        ),
    ] {
        let refused = plan(&parsed(&live_by(strategy)), &wish("acme", None, Stage::Shadow)).unwrap_err();
        let Refusal::Held { flag: Flag::Live, by, .. } = &refused else { panic!("{refused:?}") };
        assert_eq!(by, &[named.to_owned()]);
    }
}

#[test]
fn the_kill_switch_refuses_a_cutover_but_not_a_rollback() {
    let document = DocumentBuilder::default().account(Stage::Live, "acme").kill(true).build().unwrap();
    assert_eq!(document.stage("acme", "sync"), Stage::Shadow);
    assert_eq!(plan(&document, &wish("globex", None, Stage::Live)).unwrap_err(), Refusal::Kill { stage: Stage::Live });
    let back = plan(&document, &wish("acme", None, Stage::Shadow)).unwrap();
    assert!(!back.is_on(Flag::Live, "acme", "sync"), "it would go live as soon as the switch is lifted");
}

#[test]
fn a_disabled_flag_that_lists_others_is_not_enabled() {
    let strategy = json!({ "name": "default", "constraints": [{ "contextName": "userId", "operator": "IN", "values": ["globex"] }] });
    let mut feature = json!({ "name": "crossover-live", "enabled": false, "strategies": [strategy] });
    let refused = plan(&parsed(&with(feature.clone())), &wish("acme", None, Stage::Live)).unwrap_err();
    assert_eq!(refused, Refusal::Disabled { flag: Flag::Live });
    feature["strategies"][0]["constraints"][0]["values"] = json!(["acme"]);
    assert_eq!(
        plan(&parsed(&with(feature)), &wish("acme", None, Stage::Live)).unwrap().stage("acme", "k"),
        Stage::Live
    );
}

#[test]
fn a_name_that_the_evaluator_cannot_compare_with_is_refused() {
    let refused = plan(&Document::parse(SHIPPED).unwrap(), &wish("acme\\", None, Stage::Live)).unwrap_err();
    assert!(matches!(refused, Refusal::Name { .. }), "{refused:?}");
}

const ACCOUNTS: [&str; 4] = ["acme", "globex, inc", "a \"quoted\" one", "déjà"];
const KINDS: [&str; 3] = ["sync", "action", "another"];

fn step() -> impl Strategy<Value = Wish> {
    let kind = proptest::option::of(prop::sample::select(&KINDS[..2]));
    (prop::sample::select(&ACCOUNTS[..]), kind, prop::sample::select(Stage::ALL))
        .prop_map(|(account, kind, stage)| wish(account, kind, stage))
}

fn start() -> impl Strategy<Value = Document> {
    proptest::collection::vec(step(), 0..6).prop_map(|wishes| {
        let mut builder = DocumentBuilder::default();
        for wish in wishes {
            match &wish.kind {
                Some(kind) => builder.kind(wish.stage, &wish.account, kind),
                None => builder.account(wish.stage, &wish.account),
            };
        }
        builder.build().unwrap()
    })
}

fn all(document: &Document) -> BTreeMap<(&'static str, &'static str), Stage> {
    let pairs = ACCOUNTS.into_iter().flat_map(|account| KINDS.map(|kind| (account, kind)));
    pairs.map(|(account, kind)| ((account, kind), document.stage(account, kind))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_sequence_of_edits_ends_in_what_was_asked_and_never_touches_others(start in start(), steps in proptest::collection::vec(step(), 1..12)) {
        let (mut document, mut wanted) = (start, BTreeMap::new());
        wanted.extend(all(&document));
        for step in steps {
            let after = plan(&document, &step);
            prop_assert!(after.is_ok(), "{:?}: {:?} in {}", step, after, document.text());
            document = after.unwrap();
            for ((account, kind), stage) in &mut wanted {
                if *account == step.account && step.kind.as_deref().is_none_or(|only| only == *kind) {
                    *stage = step.stage;
                }
            }
            prop_assert_eq!(&all(&document), &wanted, "{:?} {}", step, document.text());
            prop_assert!(document.plan(&step, &Known::default()).unwrap().changes.is_empty(), "{:?} {}", step, document.text());
        }
    }
}
