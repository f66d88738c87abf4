//! What a clean run leaves behind.

use crossover::interaction::Stage;
use serde_json::json;

use super::*;
use crate::bridge::runner::Rule;
use crate::bridge::world::with;

/// One attempt of one side: its number, when it was dequeued and ended, how, and the wait after it.
type Step = (i32, Option<Outcome>, Option<i64>);

fn steps(found: &[Recorded], side: Side) -> Vec<Step> {
    let ends = of(found, side, "ended").map(|r| match &r.sighting.what {
        Seen::Ended { outcome, retry_ms, .. } => (r.sighting.fence.attempt, *outcome, *retry_ms),
        _ => unreachable!(),
    });
    ends.collect()
}

/// Each attempt begins once and ends once, in this order and by sane clocks.
fn in_order(found: &[Recorded], side: Side, rehearsal: bool, hash: [u8; 32]) {
    let mut before: Option<DateTime<Utc>> = None;
    for (dequeued, ended) in of(found, side, "dequeued").zip(of(found, side, "ended")) {
        let Seen::Dequeued { due_at, kind, group, payload_hash, payload } = &dequeued.sighting.what else {
            unreachable!()
        };
        assert_eq!((kind.as_str(), group.as_str(), payload_hash), ("sync", "default", &hash));
        assert!(payload.is_none(), "the hash is the promised one");
        assert_eq!(dequeued.sighting.fence, ended.sighting.fence);
        assert_eq!((dequeued.sighting.rehearsal, ended.sighting.rehearsal), (rehearsal, rehearsal));
        let slack = chrono::TimeDelta::milliseconds(50);
        assert!(*due_at <= dequeued.sighting.at + slack, "{dequeued:?}");
        assert!(dequeued.sighting.at <= ended.sighting.at && dequeued.sighting.at <= dequeued.seen_at + slack);
        assert!(before.is_none_or(|before| before <= dequeued.sighting.at), "attempts overlap: {found:#?}");
        before = Some(ended.sighting.at);
    }
}

async fn is_recorded_in(stage: Stage) {
    use Outcome::{Failed, Succeeded};
    let world = World::new(stage).await;
    let node = world.node().await;
    world.runner.rule("retried", Rule::Fail(1));
    let policy = json!({ "max_attempts": 3, "backoff": { "delays_ms": [150] } });
    let clean = node.accepts(&world.request("clean"), 201).await;
    assert_eq!(clean.owner(), stage.owner());
    node.accepts(&with(world.request("retried"), json!({ "policy": policy })), 201).await;
    let wanted = [
        ("clean", vec![(1, Some(Succeeded), None)]),
        ("retried", vec![(1, Some(Failed), Some(150)), (2, Some(Succeeded), None)]),
    ];
    for (key, wanted) in wanted {
        let both = |found: &[Recorded]| Side::ALL.iter().all(|side| count(found, *side, "ended") >= wanted.len());
        let found = seen(&world, key, "both sides have ended", both).await;
        let hash = world.story(key).await.unwrap().pin.payload_hash.try_into().unwrap();
        for side in Side::ALL {
            assert_eq!(steps(&found, *side), wanted, "{key} on {side}: {found:#?}");
            assert_eq!(count(&found, *side, "dequeued"), wanted.len(), "{key} on {side}: {found:#?}");
            in_order(&found, *side, *side != stage.owner(), hash);
        }
        assert_eq!(count(&found, Side::Temporal, "delivered"), 1, "{found:#?}");
        // Nothing else was seen.
        assert_eq!(found.len(), 1 + 4 * wanted.len(), "{found:#?}");
    }
    node.stop().await;
    let open = "select count(*) from crossover.observers where ended_at is null or dropped > 0";
    assert_eq!(world.scalar::<i64>(open).await, 0, "it ended when everything was written");
}

#[tokio::test(flavor = "multi_thread")]
async fn in_shadow_every_attempt_is_seen_to_begin_and_to_end_on_both_sides() {
    is_recorded_in(Stage::Shadow).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_live_every_attempt_is_seen_to_begin_and_to_end_on_both_sides() {
    is_recorded_in(Stage::Live).await;
}
