//! One trace from the caller to both sides' runs.

use super::collector::{Collector, Span};
use super::*;
use crate::bridge::child::Child;

const CALLER: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

fn has<'a>(spans: &'a [Span], name: &str, side: Option<&str>) -> Option<&'a Span> {
    spans.iter().find(|span| span.name == name && span.side.as_deref() == side)
}

async fn joins_everything(stage: Stage, execution: &'static str, rehearsal: &'static str) {
    let (world, collector) = (World::new(stage).await, Collector::start().await);
    let set = [("CROSSOVER_TELEMETRY_OTLP_ENDPOINT", collector.endpoint.as_str())];
    let router = Child::serve(&world, "router", &set).await;
    let worker = Child::serve(&world, "worker,relay", &set).await;
    let parent = format!("00-{CALLER}-00f067aa0ba902b7-01");
    let body = world.request("one").to_string().into_bytes();
    let answer = ask(&router.node, Method::POST, "/v1/interactions", &[("traceparent", &parent)], Some(body)).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    world.succeeded("one").await;
    world.rehearsed("one", 1).await;
    // Whatever has ended is sent at the end of a process, if not before.
    let (mut router, mut worker) = (router, worker);
    for child in [&mut router, &mut worker] {
        child.terminate();
        assert!(child.ended().await.success());
    }
    let spans = collector.about(world.id("one"));
    let root = has(&spans, "enqueue", None).unwrap_or_else(|| panic!("{spans:#?}"));
    assert_eq!((root.parent.as_str(), root.links.as_slice()), ("", &[CALLER.to_owned()][..]), "{spans:#?}");
    let wanted = [("deliver", None), ("execute", Some(execution)), ("rehearse", Some(rehearsal))];
    for (name, side) in wanted {
        let span = has(&spans, name, side).unwrap_or_else(|| panic!("{name} {side:?} in {spans:#?}"));
        assert_eq!(span.parent, root.id, "{name}");
    }
    let execute = has(&spans, "execute", Some(execution)).unwrap();
    let handed = world.runner.of("one")[0].traceparent.clone().unwrap();
    assert_eq!(handed, format!("00-{}-{}-01", execute.trace, execute.id));
    assert!(collector.of(CALLER).iter().any(|span| span.name == "request"), "the request is in the caller's trace");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_trace_joins_enqueue_delivery_temporals_run_and_postgres_rehearsal() {
    joins_everything(Stage::Shadow, "temporal", "postgres").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_trace_joins_enqueue_delivery_postgres_run_and_temporals_rehearsal() {
    joins_everything(Stage::Live, "postgres", "temporal").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_costs_spans_and_nothing_else() {
    let world = World::new(Stage::Live).await;
    let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", gone.local_addr().unwrap());
    drop(gone);
    let child = Child::serve(&world, "router,worker,relay", &[("CROSSOVER_TELEMETRY_OTLP_ENDPOINT", &endpoint)]).await;
    for n in 0..20 {
        child.node.accepts(&world.request(&format!("k{n}")), 201).await;
    }
    for n in 0..20 {
        world.succeeded(&format!("k{n}")).await;
    }
    until("the loss is counted", async || {
        let shown = child.node.get("/metrics").await.body;
        shown.as_str()?.contains("crossover_spans_total{outcome=\"lost\"}").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_collector_the_runner_still_learns_the_trace_of_the_interaction() {
    let world = World::new(Stage::Complete).await;
    let node = world.node().await;
    node.accepts(&world.request("one"), 201).await;
    world.succeeded("one").await;
    let handed = world.runner.of("one")[0].traceparent.clone().unwrap();
    assert!(handed.starts_with(&format!("00-{}-", world.id("one").simple())) && handed.ends_with("-00"), "{handed}");
    node.stop().await;
}
