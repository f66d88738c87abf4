//! `/openapi.json` describes what is served, and nothing else.

use super::*;

/// What `/openapi.json` says.
struct Described(Value);

impl Described {
    async fn by(node: &Node) -> Self {
        Self(node.get("/openapi.json").await.body)
    }

    fn fits(&self, schema: &Value, found: &Value) {
        let faults = self.faults(schema, found, "$");
        assert!(faults.is_empty(), "{faults:#?} in {found:#}");
    }

    /// What of JSON Schema the description uses: references, types, required fields, items, enumerations, alternatives.
    /// A field that is not described is a fault, though the schema would let it pass. (The crate `jsonschema` switches
    /// `serde_json` to another way of reading floats for the whole program under test.)
    fn faults(&self, schema: &Value, found: &Value, at: &str) -> Vec<String> {
        if let Some(name) = schema["$ref"].as_str() {
            let named = self.0.pointer(name.trim_start_matches('#')).unwrap_or_else(|| panic!("{name} is described"));
            return self.faults(named, found, at);
        }
        if let Some(choices) = schema["oneOf"].as_array() {
            let tried: Vec<_> = choices.iter().map(|choice| self.faults(choice, found, at)).collect();
            let fit = tried.iter().filter(|faults| faults.is_empty()).count();
            return if fit == 1 { Vec::new() } else { vec![format!("{at}: {fit} of {tried:?}")] };
        }
        let is = |kind: &str| match kind {
            "null" => found.is_null(),
            "string" => found.is_string(),
            "boolean" => found.is_boolean(),
            "integer" => found.is_i64() || found.is_u64(),
            "number" => found.is_number(),
            "array" => found.is_array(),
            "object" => found.is_object(),
            other => panic!("{at}: no type {other}"),
        };
        let right = match &schema["type"] {
            Value::String(kind) => is(kind),
            Value::Array(kinds) => kinds.iter().any(|kind| is(kind.as_str().unwrap())),
            _ => true,
        };
        if !right || schema["enum"].as_array().is_some_and(|known| !known.contains(found)) {
            return vec![format!("{at}: {found} is not {schema}")];
        }
        let mut faults = Vec::new();
        for (n, item) in found.as_array().into_iter().flatten().enumerate() {
            faults.extend(self.faults(&schema["items"], item, &format!("{at}[{n}]")));
        }
        let (Some(fields), Some(known)) = (found.as_object(), schema["properties"].as_object()) else { return faults };
        let required = schema["required"].as_array().into_iter().flatten().map(|name| name.as_str().unwrap());
        faults
            .extend(required.filter(|name| !fields.contains_key(*name)).map(|name| format!("{at}.{name} is missing")));
        for (name, value) in fields {
            match known.get(name) {
                Some(schema) => faults.extend(self.faults(schema, value, &format!("{at}.{name}"))),
                None => faults.push(format!("{at}.{name} is not described")),
            }
        }
        faults
    }

    /// The answer has the status, the type and the shape that are described.
    fn answers(&self, method: &str, path: &str, answer: &Answer) {
        let described = &self.0["paths"][path][method]["responses"][answer.status.to_string()];
        let kind = answer.headers["content-type"].to_str().unwrap().split(';').next().unwrap();
        let schema = &described["content"][kind]["schema"];
        assert!(schema.is_object(), "{method} {path} answered {answer:?}, described is {described}");
        self.fits(schema, &answer.body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_really_answered_has_the_described_shape() {
    let world = World::new(Stage::Shadow).await;
    let node = world.node().await;
    let described = Described::by(&node).await;
    let (enqueue, one) = ("/v1/interactions", "/v1/interactions/{id}");
    let held = post(&node, "/v1/interactions?wait=20s", &world.member("s", "one")).await;
    assert!(held.body["end"].is_object(), "{held:?}");
    described.answers("post", enqueue, &held);
    world.rehearsed("one", 1).await;
    for body in [
        world.request("two"),
        world.request("two"),
        with(world.request("two"), json!({ "payload": 3 })),
        json!({}),
        json!([]),
        with(world.request("three"), json!({ "payload": "x".repeat(1_200_000) })),
        with(world.request("later"), later()),
    ] {
        described.answers("post", enqueue, &post(&node, enqueue, &body).await);
    }
    let form = [("content-type", "text/plain")];
    described.answers("post", enqueue, &ask(&node, Method::POST, enqueue, &form, None).await);
    let items = json!({ "interactions": [world.request("four"), {}, 5] });
    let batch = format!("{enqueue}/batch");
    described.answers("post", &batch, &post(&node, &batch, &items).await);
    described.answers("post", &batch, &post(&node, &batch, &json!({ "interactions": [] })).await);
    for key in ["one", "later", "none"] {
        described.answers("get", one, &node.get(&format!("{enqueue}/{}", world.id(key))).await);
    }
    described.answers("get", one, &node.get(&format!("{enqueue}/7")).await);
    for query in ["account=nobody", "limit=2", "limit=0&acount=a"] {
        described.answers("get", enqueue, &node.get(&format!("{enqueue}?{query}")).await);
    }
    for key in ["later", "one", "none"] {
        described.answers("post", "/v1/interactions/{id}/cancel", &cancel(&node, &world, key).await);
    }
    for key in ["one", "none"] {
        let path = format!("{enqueue}/{}/handover", world.id(key));
        described.answers("post", "/v1/interactions/{id}/handover", &post(&node, &path, &json!({})).await);
    }
    for path in ["/healthz", "/readyz", "/metrics", "/openapi.json"] {
        described.answers("get", path, &node.get(path).await);
    }
    world.flip(Stage::Off, &[&node]).await;
    let off = with(world.request("unpinned"), json!({ "account": format!("{}-off", world.account) }));
    let off = node.accepts(&off, 201).await;
    let path = format!("{enqueue}/{}", off.body["id"].as_str().unwrap());
    described.answers(
        "get",
        one,
        &until("it is found", async || Some(node.get(&path).await).filter(|a| a.status == 200)).await,
    );
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn schedules_are_answered_in_the_described_shape() {
    let world = World::new(Stage::Complete).await;
    let node = world.node().await;
    let described = Described::by(&node).await;
    let (all, one) = ("/v1/schedules", "/v1/schedules/{id}");
    let of = |spec: Value| json!({ "account": world.account, "name": spec.to_string(), "kind": "sync", "payload": { "n": 1 }, "spec": spec });
    let mut path = String::new();
    for spec in [json!({ "every_ms": 1_000 }), json!({ "cron": "@daily" }), json!({ "at": "2100-01-01T00:00:00Z" })] {
        let made = node.call("POST", all, Some(&of(spec))).await;
        described.answers("post", all, &made);
        path = format!("{all}/{}", made.body["id"].as_str().unwrap());
    }
    described.answers("post", all, &node.call("POST", all, Some(&json!({}))).await);
    let trigger = node.call("POST", &format!("{path}/trigger"), Some(&json!({}))).await;
    described.answers("post", "/v1/schedules/{id}/trigger", &trigger);
    until("it has run", async || Some(node.get(&path).await).filter(|one| one.body["runs"][0].is_object())).await;
    let pause = json!({ "reason": "why not" });
    described.answers(
        "post",
        "/v1/schedules/{id}/pause",
        &node.call("POST", &format!("{path}/pause"), Some(&pause)).await,
    );
    described.answers("get", one, &node.get(&path).await);
    described.answers("get", all, &node.get(all).await);
    described.answers("get", all, &node.get(&format!("{all}?limit=0")).await);
    described.answers("post", "/v1/schedules/{id}/resume", &node.call("POST", &format!("{path}/resume"), None).await);
    described.answers("patch", one, &node.call("PATCH", &path, Some(&json!({ "priority": 3 }))).await);
    described.answers("patch", one, &node.call("PATCH", &path, Some(&json!({ "priority": 3, "version": 1 }))).await);
    assert_eq!(node.call("DELETE", &path, None).await.status, 204);
    described.answers("delete", one, &node.call("DELETE", &path, None).await);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_examples_have_the_described_shape_and_are_taken() {
    let world = World::new(Stage::Live).await;
    let node = world.node().await;
    let described = Described::by(&node).await;
    let schemas = described.0["components"]["schemas"].as_object().unwrap();
    let mut examples = 0;
    for (name, schema) in schemas.iter().filter(|(_, schema)| schema["example"].is_object()) {
        described.fits(&json!({ "$ref": format!("#/components/schemas/{name}") }), &schema["example"]);
        examples += 1;
    }
    assert!(examples >= 4, "{examples}");
    node.accepts(&with(schemas["NewInteraction"]["example"].clone(), json!({ "account": world.account })), 201).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_described_route_answers_and_only_with_its_methods() {
    let world = World::new(Stage::Live).await;
    let node = world.node_with(ROUTER, |_| {}).await;
    let document = node.get("/openapi.json").await.body;
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"), "{document}");
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(document["info"]["x-sha256"].as_str().unwrap().len(), 64);
    let paths = document["paths"].as_object().unwrap();
    assert!(paths.len() >= 8, "{paths:?}");
    for (path, operations) in paths {
        let concrete = path.replace("{id}", &world.id("none").to_string());
        for method in [Method::GET, Method::POST, Method::PUT, Method::DELETE] {
            let described = operations.get(method.as_str().to_lowercase()).is_some();
            let answer = ask(&node, method.clone(), &concrete, &[], Some(b"{}".to_vec())).await;
            assert_eq!(answer.status != 405, described, "{method} {path}: {answer:?}");
            assert!(!answer.body["detail"].as_str().is_some_and(|d| d.contains("there is nothing at")), "{path}");
        }
    }
    node.stop().await;
}

#[test]
fn no_route_is_served_without_being_described() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/http");
    for file in std::fs::read_dir(folder).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        for way_around in [".route(", ".nest(", "route_service(", "axum::routing"] {
            assert!(!text.contains(way_around), "{way_around} adds a route that /openapi.json knows nothing of");
        }
    }
}
