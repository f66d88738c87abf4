//! The proof: among clean traffic in shadow, the Postgres side is made late on one, drops one, runs one twice, swaps two of a
//! series and changes one payload. Each is found once, in its class, and nothing else is.

use crossover::faults::{Fault, inject};
use crossover::interaction::{Payload, Side, Stage};

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn five_faults_among_clean_traffic_are_found_each_in_its_class_and_nothing_else_is() {
    let world = World::new(Stage::Shadow).await;
    let node = node(&world).await;
    let faults = [
        ("late", Fault::Late(Duration::from_secs(6))),
        ("dropped", Fault::Dropped),
        ("twice", Fault::Twice),
        ("member-3", Fault::After(world.id("member-4"))),
        ("changed", Fault::Payload(Payload::parse(r#"{"for":"somebody else"}"#.to_owned()).unwrap())),
    ];
    for (key, fault) in faults {
        inject(Side::Postgres, world.id(key), fault);
    }
    let mut keys: Vec<String> = Vec::new();
    for round in 0..12 {
        for key in [format!("one-{round}"), format!("two-{round}")] {
            node.accepts(&world.request(&key), 201).await;
            keys.push(key);
        }
        let member = format!("member-{round}");
        node.post(&world.member("series", &member)).await;
        keys.push(member);
        let special = match round {
            1 => "late",
            2 => "dropped",
            3 => "twice",
            4 => "changed",
            _ => "",
        };
        if !special.is_empty() {
            node.accepts(&world.request(special), 201).await;
        }
        // The others go on while one is late, so that they overtake it.
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
    diverged(&world, "late", "late", "postgres").await;
    diverged(&world, "dropped", "missing", "postgres").await;
    diverged(&world, "twice", "duplicate", "postgres").await;
    diverged(&world, "changed", "payload", "postgres").await;
    diverged(&world, "member-4", "order", "postgres").await;
    for key in keys.iter().filter(|key| *key != "member-4") {
        matched(&world, key).await;
    }
    scores_agree(&world).await;
    let text = node.get("/metrics").await.body.as_str().unwrap().to_owned();
    for class in ["late", "missing", "duplicate", "payload", "order"] {
        let line = format!("crossover_divergences_total{{class=\"{class}\",side=\"postgres\"}} 1");
        assert!(text.contains(&line), "{line} is missing in {text}");
    }
    node.stop().await;
}
