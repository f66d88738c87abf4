//! The protocol as a model: every interleaving of small stories, with faults between any two steps.
//!
//! `docs/protocol.md` says what is modelled, and which failure each guard stops. `CROSSOVER_MODEL_SCALE=1` explores
//! larger stories.

mod explore;
mod guard;
mod one;
mod series;

use std::time::Instant;

use explore::{Explored, Story, explore};
use guard::Guard;
use one::One;
use series::Series;
use stateright::{Checker, Model};

/// 0 for the test suite; more adds requests and faults to every story.
fn scale() -> u8 {
    std::env::var("CROSSOVER_MODEL_SCALE").ok().and_then(|scale| scale.parse().ok()).unwrap_or(0)
}

fn one(name: &str, scale: u8) -> Option<One> {
    one::stories::all(scale).into_iter().find(|story| story.name == name)
}

fn series(name: &str, scale: u8) -> Option<Series> {
    series::stories::all(scale).into_iter().find(|story| story.name == name)
}

/// States at most: a story that grows beyond them is told so, before it takes the machine's memory.
const BOUND: usize = 40_000_000;

fn holds<M: Story>(name: &str, story: &M) {
    let began = Instant::now();
    let Explored { states, steps, depth, untaken, broken } = explore(story, BOUND);
    println!("{name}: {states} states, {steps} steps, {depth} deep, in {:.1?}", began.elapsed());
    if let Some(broken) = broken {
        panic!("{name}: «{}» does not hold:\n{}\n{}", broken.property, broken.trace.join("\n"), broken.last);
    }
    assert!(untaken.is_empty(), "{name}: never possible, so nothing is said of it: {untaken:?}");
}

macro_rules! stories {
    ($($test:ident: $find:ident $name:literal;)*) => {
        $(#[test]
        fn $test() {
            holds($name, &$find($name, scale()).unwrap());
        })*
    };
}

stories! {
    with_all_guards_enqueue_holds: one "enqueue";
    with_all_guards_arming_holds: one "arming";
    with_all_guards_failing_open_holds: one "failing-open";
    with_all_guards_visibility_may_lag: one "lag";
    with_all_guards_disarming_holds: one "disarm";
    with_all_guards_handover_holds: one "handover";
    with_all_guards_fences_hold: one "fences";
    with_all_guards_a_series_across_flips_holds: series "series";
    with_all_guards_handing_over_a_series_holds: series "series-handover";
    with_all_guards_a_series_that_is_taken_over_holds: series "series-arming";
}

/// The guard's story, explored without it.
fn without(guard: Guard) -> Explored {
    if let Some(mut story) = series(guard.story(), 0) {
        story.guards = story.guards.without(guard);
        return explore(&story, BOUND);
    }
    let mut story = one(guard.story(), 0).expect("no such story");
    story.guards = story.guards.without(guard);
    explore(&story, BOUND)
}

#[test]
fn every_guard_is_needed() {
    let mut needless = Vec::new();
    for &guard in Guard::ALL {
        match without(guard).broken {
            Some(broken) => {
                println!("without {guard:?}, after {} steps: not «{}»", broken.trace.len(), broken.property)
            }
            None => needless.push((guard, guard.story())),
        }
    }
    assert!(needless.is_empty(), "nothing fails without {needless:?}");
}

/// Two explorers that share nothing but the model: they meet the same states, and come to the same verdict.
#[test]
fn stateright_explores_the_same_states_and_finds_the_same_failure() {
    for name in ["enqueue", "disarm", "handover", "fences"] {
        let story = one(name, 0).unwrap();
        let ours = explore(&story, BOUND);
        let theirs = story.checker().spawn_bfs().join();
        theirs.assert_properties();
        assert_eq!(theirs.unique_state_count(), ours.states, "{name}");
    }
    let mut story = one("handover", 0).unwrap();
    story.guards = story.guards.without(Guard::HandoverOnlyUnclaimed);
    let ours = explore(&story, BOUND).broken.expect("ours finds it");
    let theirs = story.checker().spawn_bfs().join();
    let path = theirs.discovery(ours.property).expect("stateright finds it");
    assert!(path.into_actions().len() >= ours.trace.len(), "ours is a shortest one");
}

/// `docs/protocol.md` has the guards as they are here. `UPDATE_DOCS=1 cargo test --test model` writes them anew.
#[test]
fn the_page_of_the_protocol_lists_every_guard_with_the_failure_it_stops() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/protocol.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(BEGIN).expect("the page has no place for the guards");
    let (found, after) = rest.split_once(END).expect("the place for the guards has no end");
    let mut wanted = "\n\n| guard | the rule | without it | story |\n| --- | --- | --- | --- |\n".to_owned();
    for guard in Guard::ALL {
        wanted += &format!("| `{guard:?}` | {} | {} | {} |\n", guard.says(), guard.stops(), guard.story());
    }
    wanted += "\n";
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, format!("{before}{BEGIN}{wanted}{END}{after}")).unwrap();
    } else {
        assert!(found == wanted, "docs/protocol.md has drifted; UPDATE_DOCS=1 cargo test --test model writes it anew");
    }
}

const BEGIN: &str = "<!-- guards: generated from tests/model/guard.rs -->";
const END: &str = "<!-- end of guards -->";
