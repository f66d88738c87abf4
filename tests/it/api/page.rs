//! docs/api.md: its examples are requests that are taken.

use super::*;

/// The parts of a `curl` line: the path, whether it posts, and its body.
fn examples() -> Vec<(String, Option<String>)> {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/api.md")).unwrap();
    let blocks = page.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap().replace("\\\n", " "));
    let curls = blocks.filter(|block| block.starts_with("curl"));
    let part = |line: &str, before: &str, after: char| {
        line.split_once(before).map(|(_, rest)| rest.split(after).next().unwrap().to_owned())
    };
    let read = |line: String| {
        let body = part(&line, "-d '", '\'').or(line.contains("-X POST").then(String::new));
        (part(&line, "$URL", '"').unwrap(), body)
    };
    curls.map(read).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_example_of_the_page_is_taken() {
    let world = World::new(Stage::Live).await;
    let node = world.node().await;
    let examples = examples();
    assert!(examples.len() >= 5, "{examples:?}");
    for (path, body) in examples {
        let (method, kind) = (if body.is_some() { Method::POST } else { Method::GET }, "application/json");
        let body = body.map(|text| text.replace("acme", &world.account).into_bytes());
        let answer = ask(&node, method, &path, &[("content-type", kind)], body).await;
        // The id in the examples is nobody's here.
        let wanted: &[u16] = if path.contains("9a2a77af") { &[404] } else { &[200, 201] };
        assert!(wanted.contains(&answer.status), "{path}: {answer:?}");
    }
    node.stop().await;
}
