//! The world of a test: a database and a task queue of its own on the shared servers, a flags file, a runner, and the
//! processes that the test starts in it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use crossover::app::{App, Roles, Servers};
use crossover::config::{Config, SecretUrl};
use crossover::flags::{DocumentBuilder, Flags};
use crossover::interaction::{Attempt, Side, interaction_id};
use crossover::ledger::{self, Ledger, Story};
use reqwest::header::HeaderMap;
use sqlx::PgPool;
use tokio::sync::{Semaphore, SemaphorePermit};
use uuid::Uuid;

use super::runner::{Call, Runner};
use super::*;
use crate::servers;

pub const ALL: Roles = Roles::ALL;
pub const ROUTER: Roles = Roles { router: true, worker: false, relay: false };
pub const WORKER: Roles = Roles { router: false, worker: true, relay: true };

/// So many worlds at once, or two cores' servers are overloaded and every wait is a guess.
static ROOM: Semaphore = Semaphore::const_new(3);
static NAMES: AtomicU32 = AtomicU32::new(0);

pub struct World {
    /// No other world's account has this name, for Temporal is shared.
    pub account: String,
    pub postgres: String,
    pub temporal: String,
    pub ledger: Ledger,
    pub runner: Runner,
    pub flags: PathBuf,
    task_queue: String,
    folder: tempfile::TempDir,
    _room: SemaphorePermit<'static>,
}

impl World {
    /// A world on the shared servers, where every account is in `stage`.
    pub async fn new(stage: Stage) -> Self {
        let room = ROOM.acquire().await.unwrap();
        let (postgres, temporal) = (servers::database().await, servers::temporal().await.address.clone());
        Self::on(room, postgres, temporal, stage).await
    }

    /// A world on servers of the test's own; what isn't given is shared.
    pub async fn with(postgres: Option<String>, temporal: Option<String>, stage: Stage) -> Self {
        let room = ROOM.acquire().await.unwrap();
        let postgres = match postgres {
            Some(url) => url,
            None => servers::database().await,
        };
        let temporal = match temporal {
            Some(address) => address,
            None => servers::temporal().await.address.clone(),
        };
        Self::on(room, postgres, temporal, stage).await
    }

    async fn on(room: SemaphorePermit<'static>, postgres: String, temporal: String, stage: Stage) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ledger = Ledger::new(ledger::pool(&postgres, 10, Duration::from_secs(10)).unwrap());
        ledger.migrate().await.unwrap();
        crate::guards::take_out_what_is_missing(ledger.pool()).await;
        let (n, flags) = (NAMES.fetch_add(1, Relaxed), folder.path().join("flags.json"));
        let (account, task_queue) = (format!("account-{n}"), format!("queue-{n}"));
        let runner = Runner::start().await;
        let world = Self { account, postgres, temporal, ledger, runner, flags, task_queue, folder, _room: room };
        document(stage).write_to(&world.flags).unwrap();
        world
    }

    /// A path that nobody else has.
    pub fn fresh(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}-{}", NAMES.fetch_add(1, Relaxed)))
    }

    pub fn config(&self) -> Config {
        let mut config = Config::defaults();
        config.state_dir = self.fresh("state");
        config.flags.file = self.flags.clone();
        config.flags.poll = Duration::from_millis(50);
        config.runner.url = Some(SecretUrl::new(&self.runner.url));
        config.temporal.task_queue = self.task_queue.clone();
        config.temporal.visibility_lag = Duration::from_millis(200);
        config.http.listen = SocketAddr::from(([127, 0, 0, 1], 0));
        config.worker.shutdown_grace = Duration::from_secs(2);
        config.worker.poll = Duration::from_millis(50);
        config.worker.slots = 8;
        config.relay.poll = Duration::from_millis(50);
        config.relay.grace = Duration::from_millis(500);
        // Tests of arming and of outages switch it on.
        config.router.fail_open = false;
        config
    }

    /// The same for a child.
    pub fn variables(&self) -> Vec<(String, String)> {
        let config = self.config();
        let ms = |d: Duration| format!("{}ms", d.as_millis());
        let set = [
            ("POSTGRES_URL", self.postgres.clone()),
            ("TEMPORAL_ADDRESS", self.temporal.clone()),
            ("TEMPORAL_TASK_QUEUE", self.task_queue.clone()),
            ("TEMPORAL_VISIBILITY_LAG", ms(config.temporal.visibility_lag)),
            ("FLAGS_FILE", self.flags.display().to_string()),
            ("FLAGS_POLL", ms(config.flags.poll)),
            ("RUNNER_URL", self.runner.url.clone()),
            ("HTTP_LISTEN", config.http.listen.to_string()),
            ("WORKER_SHUTDOWN_GRACE", ms(config.worker.shutdown_grace)),
            ("WORKER_POLL", ms(config.worker.poll)),
            ("WORKER_SLOTS", config.worker.slots.to_string()),
            ("RELAY_POLL", ms(config.relay.poll)),
            ("RELAY_GRACE", ms(config.relay.grace)),
            ("ROUTER_FAIL_OPEN", config.router.fail_open.to_string()),
        ];
        set.map(|(key, value)| (format!("CROSSOVER_{key}"), value)).into()
    }

    /// A process of this one with all roles.
    pub async fn node(&self) -> Node {
        self.node_with(ALL, |_| {}).await
    }

    pub async fn node_with(&self, roles: Roles, adjust: impl FnOnce(&mut Config)) -> Node {
        self.node_towards(&self.temporal, roles, adjust).await
    }

    /// A node that knows Temporal under another address.
    pub async fn node_towards(&self, temporal: &str, roles: Roles, adjust: impl FnOnce(&mut Config)) -> Node {
        self.node_between(&self.postgres, temporal, roles, adjust).await
    }

    /// A node that knows both servers under other addresses.
    pub async fn node_between(
        &self,
        postgres: &str,
        temporal: &str,
        roles: Roles,
        adjust: impl FnOnce(&mut Config),
    ) -> Node {
        let mut config = self.config();
        adjust(&mut config);
        let (postgres_url, temporal_address) = (postgres.to_owned(), temporal.to_owned());
        let servers = Servers { postgres_url, temporal_address, postgres: None, temporal: None };
        let app = App::start(&config, roles, servers).await.unwrap();
        Node { flags: app.flags().cloned(), ..Node::at(app.address()) }.running(app)
    }

    /// Puts everybody into `stage`, and waits until these nodes know.
    pub async fn flip(&self, stage: Stage, nodes: &[&Node]) {
        let document = document(stage);
        document.write_to(&self.flags).unwrap();
        for flags in nodes.iter().filter_map(|node| node.flags.as_ref()) {
            let mut changed = flags.changed();
            let known = changed.wait_for(|revision| revision == document.revision());
            tokio::time::timeout(PATIENCE, known).await.expect("the flip is seen").unwrap();
        }
    }

    pub fn id(&self, key: &str) -> Uuid {
        interaction_id(&self.account, key)
    }

    /// A request of this world's account.
    pub fn request(&self, key: &str) -> Value {
        json!({ "account": self.account, "kind": "sync", "key": key, "payload": { "for": key } })
    }

    pub fn member(&self, series: &str, key: &str) -> Value {
        with(self.request(key), json!({ "series": series }))
    }

    pub async fn story(&self, key: &str) -> Option<Story> {
        self.ledger.story(self.id(key)).await.unwrap()
    }

    pub async fn until_story<T>(&self, key: &str, what: &str, mut found: impl FnMut(&Story) -> Option<T>) -> T {
        until(&format!("{key}: {what}"), async || {
            // Postgres may be the one that is away.
            self.ledger.story(self.id(key)).await.ok().flatten().and_then(|story| found(&story))
        })
        .await
    }

    /// The story of an interaction that has ended.
    pub async fn ended(&self, key: &str) -> Story {
        self.until_story(key, "it has ended", |story| story.pin.ended_at.map(|_| story.clone())).await
    }

    pub async fn succeeded(&self, key: &str) -> Story {
        let story = self.ended(key).await;
        assert_eq!(story.state, "succeeded", "{story:#?}");
        story
    }

    /// The attempts of the rehearsal of an interaction that has ended, once there are `n` of them.
    pub async fn rehearsed(&self, key: &str, n: usize) -> Vec<Attempt> {
        self.until_story(key, "it was rehearsed", |story| {
            let found: Vec<_> = story.attempts.iter().filter(|a| a.rehearsal).cloned().collect();
            (found.len() >= n).then_some(found)
        })
        .await
    }

    pub async fn scalar<T>(&self, sql: &'static str) -> T
    where
        T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres> + Send + Unpin,
    {
        sqlx::query_scalar(sql).fetch_one(self.pool()).await.unwrap()
    }

    pub fn pool(&self) -> &PgPool {
        self.ledger.pool()
    }

    /// What an enqueue promises: one side ran each of these, and each has succeeded there.
    pub async fn each_ran_on_its_owner(&self, keys: &[String]) {
        for key in keys {
            let owner = self.succeeded(key).await.pin.owner;
            assert!(
                self.runner.sides(key).iter().all(|side| side == owner.as_str()),
                "{key}: {:?}",
                self.runner.of(key)
            );
            assert!(!self.runner.of(key).is_empty(), "{key} was never run");
        }
    }

    /// The calls for `keys` in the order in which they began; none began before the one before it had ended.
    pub fn in_turn(&self, keys: &[String]) -> Vec<Call> {
        let mut calls: Vec<_> = self.runner.calls().into_iter().filter(|call| keys.contains(&call.key)).collect();
        calls.sort_by_key(|call| call.began);
        for pair in calls.windows(2) {
            assert!(pair[0].ended.is_some_and(|ended| ended <= pair[1].began), "they overlap: {pair:#?}");
        }
        calls
    }
}

pub fn document(stage: Stage) -> crossover::flags::Document {
    DocumentBuilder::default().everybody(stage).build().unwrap()
}

/// One JSON object over another.
pub fn with(mut request: Value, more: Value) -> Value {
    request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    request
}

/// A process of the bridge, in here or a child.
pub struct Node {
    pub base: String,
    pub flags: Option<Arc<Flags>>,
    app: Option<App>,
    http: reqwest::Client,
}

/// What it answered.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Value,
}

impl Answer {
    pub fn owner(&self) -> Side {
        self.body["owner"].as_str().unwrap_or_else(|| panic!("{self:?}")).parse().unwrap()
    }

    pub fn detail(&self) -> &str {
        self.body["detail"].as_str().unwrap_or_else(|| panic!("{self:?}"))
    }
}

impl Node {
    pub fn at(address: SocketAddr) -> Self {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { base: format!("http://{address}"), flags: None, app: None, http }
    }

    fn running(mut self, app: App) -> Self {
        self.app = Some(app);
        self
    }

    pub async fn post(&self, request: &Value) -> Answer {
        self.send(request.to_string().into_bytes()).await
    }

    pub async fn send(&self, body: Vec<u8>) -> Answer {
        let sent = self.http.post(format!("{}/v1/interactions", self.base)).body(body).send().await;
        answer(sent.unwrap()).await
    }

    /// Posts and wants a certain status.
    pub async fn accepts(&self, request: &Value, status: u16) -> Answer {
        let answer = self.post(request).await;
        assert_eq!(answer.status, status, "{answer:?} to {request}");
        answer
    }

    pub async fn get(&self, path: &str) -> Answer {
        answer(self.http.get(format!("{}{path}", self.base)).send().await.unwrap()).await
    }

    /// Any other call.
    pub async fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        let call = self.http.request(method.parse().unwrap(), format!("{}{path}", self.base));
        let call = match body {
            Some(body) => call.body(body.to_string()),
            None => call,
        };
        answer(call.send().await.unwrap()).await
    }

    pub async fn stop(mut self) {
        self.flags = None;
        self.app.take().unwrap().stop().await;
    }
}

async fn answer(response: reqwest::Response) -> Answer {
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let text = response.text().await.unwrap();
    Answer { status, headers, body: serde_json::from_str(&text).unwrap_or(Value::String(text)) }
}
