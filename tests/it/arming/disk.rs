//! What a process goes by when Postgres is away.

use super::gate::Gate;
use super::*;
use crate::bridge::child::Child;
use crate::bridge::world::{ALL, ROUTER, WORKER, document};

/// The variables of a child that lives in `home` and reaches Postgres through a gate.
fn living(home: &str, through: &str) -> Vec<(String, String)> {
    let set = ARMING.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let own = [
        ("CROSSOVER_STATE_DIR", home),
        ("CROSSOVER_POSTGRES_URL", through),
        ("CROSSOVER_POSTGRES_CONNECT_TIMEOUT", "500ms"),
    ];
    set.into_iter().chain(own.map(|(key, value)| (key.to_owned(), value.to_owned()))).collect()
}

async fn serve(world: &World, home: &str, through: &str) -> Child {
    std::fs::create_dir_all(home).unwrap();
    let set = living(home, through);
    let set: Vec<_> = set.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    Child::serve(world, "router", &set).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_router_restarted_without_postgres_goes_by_its_disk_and_one_without_its_disk_is_not_ready() {
    let world = World::new(Stage::Live).await;
    let (gate, through) = Gate::to_postgres(&world.postgres).await;
    let (home, elsewhere) = (world.fresh("home"), world.fresh("elsewhere"));
    let (home, elsewhere) = (home.to_str().unwrap(), elsewhere.to_str().unwrap());
    let node = world.node_with(ALL, arming).await;
    let mut router = serve(&world, home, &through).await;
    stage_of(&world, &node, "first").await;
    until_state(&world, "armed").await;
    // Only the account's state says that nothing of it may start without a pin.
    let off = document(Stage::Off);
    off.write_to(&world.flags).unwrap();
    until("its disk knows that the account is armed", async || {
        let kept = std::fs::read_to_string(format!("{home}/registration.json")).unwrap();
        let kept: Value = serde_json::from_str(&kept).unwrap();
        (kept["accounts"][&world.account]["state"] == "armed").then_some(())
    })
    .await;
    router.kill();
    gate.shut();

    let router = serve(&world, home, &through).await;
    let ready = router.node.get("/readyz").await;
    assert_eq!(ready.status, 200, "{ready:?}");
    assert!(ready.body["accounts"].as_str().unwrap().contains("disk"), "{ready:?}");
    let refused = router.node.accepts(&world.request("armed"), 503).await;
    assert!(refused.headers.contains_key("retry-after"), "{refused:?}");

    let unknowing = serve(&world, elsewhere, &through).await;
    let ready = unknowing.node.get("/readyz").await;
    assert_eq!((ready.status, &ready.body["ready"]), (503, &Value::Bool(false)), "{ready:?}");
    let why = ready.body["accounts"].as_str().unwrap();
    assert!(why.contains("no copy on disk") && why.contains("first start"), "{why}");
    let refused = unknowing.node.accepts(&world.request("unknown"), 503).await;
    assert!(refused.detail().contains("not ready"), "{refused:?}");

    gate.open();
    for child in [&router, &unknowing] {
        until("it is ready by Postgres", async || {
            let ready = child.node.get("/readyz").await;
            (ready.status == 200 && ready.body["accounts"] == "ok").then_some(())
        })
        .await;
    }
    let registered = "select count(*) from crossover.routers where ended_at is null";
    assert_eq!(world.scalar::<i64>(registered).await, 3, "two took up an entry or made one; none was made twice");
    // Refused, so nothing of them was started.
    for key in ["armed", "unknown"] {
        assert!(world.runner.of(key).is_empty() && world.story(key).await.is_none(), "{key}");
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_router_that_may_have_been_forgotten_meanwhile_does_not_go_by_its_disk() {
    let world = World::new(Stage::Shadow).await;
    let (gate, through) = Gate::to_postgres(&world.postgres).await;
    let home = world.fresh("home");
    let (beat, home) = (home.join("registration.beat"), home.to_str().unwrap().to_owned());
    let mut router = serve(&world, &home, &through).await;
    until("its disk knows of a beat", async || beat.exists().then_some(())).await;
    router.kill();
    gate.shut();
    // As if it had been killed so long ago.
    let long_ago = (chrono::Utc::now() - Duration::from_secs(3_601)).to_rfc3339();
    std::fs::write(&beat, format!("{long_ago} 3600")).unwrap();

    let router = serve(&world, &home, &through).await;
    let ready = router.node.get("/readyz").await;
    let why = ready.body["accounts"].as_str().unwrap();
    assert!(ready.status == 503 && why.contains("may have been forgotten") && why.contains("1h"), "{ready:?}");
    let refused = router.node.accepts(&world.request("one"), 503).await;
    assert!(refused.detail().contains("not ready"), "{refused:?}");
    assert!(world.runner.of("one").is_empty(), "nothing was started without a pin");
    gate.open();
    until("it is ready by Postgres", async || (router.node.get("/readyz").await.status == 200).then_some(())).await;
    until("its disk holds again", async || {
        let said = std::fs::read_to_string(&beat).unwrap();
        let said: chrono::DateTime<chrono::Utc> = said.split_once(' ').unwrap().0.parse().unwrap();
        (chrono::Utc::now() - said < chrono::TimeDelta::minutes(1)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_router_that_lives_goes_on_without_postgres_for_longer_than_its_disk_would_hold() {
    let world = World::new(Stage::Off).await;
    let (gate, through) = Gate::to_postgres(&world.postgres).await;
    let short = |config: &mut Config| {
        arming(config);
        config.router.disk_valid = Duration::from_secs(1);
    };
    let router = world.node_between(&through, &world.temporal, ROUTER, short).await;
    let node = world.node_with(WORKER, arming).await;
    unpinned(&world, &router, "before").await;
    gate.shut();
    until("Postgres has not heard of it for longer than that", async || {
        let metrics = router.get("/metrics").await;
        let line =
            metrics.body.as_str().unwrap().lines().find_map(|line| line.strip_prefix("crossover_unheard_seconds "));
        (line.unwrap().parse::<f64>().unwrap() > 1.5).then_some(())
    })
    .await;
    unpinned(&world, &router, "after").await;
    assert_eq!(router.get("/readyz").await.status, 200);
    gate.open();
    router.stop().await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_can_not_share_a_state_dir() {
    let world = World::new(Stage::Shadow).await;
    let home = world.fresh("home");
    let node = world.node_with(ALL, |config| config.state_dir = home.clone()).await;
    let mut config = world.config();
    config.state_dir = home;
    let servers = crossover::app::Servers {
        postgres_url: world.postgres.clone(),
        temporal_address: world.temporal.clone(),
        postgres: None,
        temporal: None,
    };
    let Err(refused) = crossover::app::App::start(&config, ALL, servers).await else { panic!("both started") };
    assert!(refused.to_string().contains("in use by another crossover process"), "{refused}");
    node.stop().await;
}
