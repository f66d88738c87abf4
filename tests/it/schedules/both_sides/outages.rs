//! What was launched before an outage goes, in it, by what Temporal has then.

use crossover::schedule::times::jittered;

use super::*;

/// The world of an account that may go on without Postgres, and the Postgres that is to go.
async fn before_the_outage() -> (provision::Postgres, Place, Node) {
    let postgres = provision::postgres(&servers::options()).await.unwrap();
    let here = Place::on(World::with(Some(postgres.url.clone()), None, Stage::Shadow).await);
    let failing_open = |config: &mut Config| {
        config.router.fail_open = true;
        config.schedules.parallel = 0;
    };
    let node = here.world.node_with(ALL, failing_open).await;
    (postgres, here, node)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_paused_deleted_or_changed_after_its_launch_is_so_in_an_outage() {
    let (mut postgres, here, node) = before_the_outage().await;
    // Launched soon, and due much later by its jitter: between the two somebody changes his mind, and then Postgres goes.
    let at = tick_of(here.schedules.now().await.unwrap() + TimeDelta::seconds(12));
    let jitter = TimeDelta::seconds(60);
    let (soonest, latest) = (at + TimeDelta::seconds(22), at + TimeDelta::seconds(50));
    let mut waiting = Vec::new();
    for n in 0.. {
        let body = json!({ "spec": { "at": at }, "jitter_ms": jitter.num_milliseconds() });
        let id = here.make(&node, &format!("s{n}"), body).await;
        let due = jittered(id, at, jitter);
        if due < soonest || due > latest {
            assert_eq!(node.call("DELETE", &format!("/v1/schedules/{id}"), None).await.status, 204);
            continue;
        }
        waiting.push(id);
        if waiting.len() == 5 {
            break;
        }
    }
    let launcher = |id: Uuid| format!("schedule:{id}-{}", at.to_rfc3339_opts(chrono::SecondsFormat::Secs, true));
    for id in &waiting {
        here.in_step(&node, *id).await;
        until("it is launched", async || here.temporal().describe(&launcher(*id)).await.ok().flatten()).await;
    }
    let [paused, deleted, changed, moved, left] = waiting[..] else { panic!("{waiting:?}") };
    here.post(&node, paused, "pause", json!({ "reason": "holidays" })).await;
    assert_eq!(node.call("DELETE", &format!("/v1/schedules/{deleted}"), None).await.status, 204);
    here.patch(&node, changed, json!({ "payload": { "n": 2 } })).await;
    here.patch(&node, moved, json!({ "spec": { "at": at + TimeDelta::days(1) } })).await;
    for id in [paused, changed, moved] {
        here.in_step(&node, id).await;
    }
    until("it is forgotten", async || here.seen(deleted).await.is_none().then_some(())).await;
    postgres.server.kill().await.unwrap();
    assert!(Utc::now() < soonest, "this machine was too slow to tell");
    let mut came_to = Vec::new();
    for id in [paused, deleted, changed, moved, left] {
        came_to.push(here.launched(&launcher(id)).await.1);
    }
    assert_eq!(came_to, ["paused", "gone", "unpinned", "stale", "unpinned"]);
    let ran = |id: Uuid| {
        let calls = here.world.runner.calls().into_iter().filter(|call| call.key.contains(&id.to_string()));
        calls.map(|call| call.payload).collect::<Vec<_>>()
    };
    until("what is left has run", async || (!ran(left).is_empty() && !ran(changed).is_empty()).then_some(())).await;
    for (id, payloads) in
        [(paused, &[][..]), (deleted, &[]), (changed, &[r#"{"n":2}"#]), (moved, &[]), (left, &[r#"{"n":1}"#])]
    {
        assert_eq!(ran(id), payloads);
    }
    postgres.server.restart().await.unwrap();
    for id in [changed, left] {
        let key = key_of(id, at);
        assert_eq!(here.world.succeeded(&key).await.pin.owner, Side::Temporal);
    }
    node.stop().await;
    postgres.server.stop().await.unwrap();
}
