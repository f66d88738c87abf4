//! A long run of clean shadow traffic on servers of its own, through a crash of Temporal, of Postgres and of the
//! comparator: no divergence may be found. Ignored, because it takes as long as it is told to:
//!
//! ```sh
//! PROOF_TRACE=a.ndjson.gz PROOF_OVER=1h PROOF_BINARY=target/release/crossover \
//!     cargo test --test it soak -- --ignored --nocapture
//! ```
//!
//! PROOF_LIMIT takes only the first so many interactions of the trace.

use std::fs::File;
use std::path::Path;
use std::process::{Child as Process, Command, Stdio};
use std::time::Instant;

use crossover::ledger::{Ledger, pool};
use crossover::provision;
use sqlx::Row;

use super::*;
use crate::servers;

struct Bridge {
    binary: String,
    folder: tempfile::TempDir,
    variables: Vec<(String, String)>,
}

impl Bridge {
    fn start(&self, name: &str, arguments: &[&str], set: &[(&str, String)]) -> Process {
        let state = self.folder.path().join(name);
        std::fs::create_dir_all(&state).unwrap();
        let log = || File::options().create(true).append(true).open(state.join("log")).unwrap();
        let mut command = Command::new(&self.binary);
        command.args(arguments).current_dir(&state).env("CROSSOVER_STATE_DIR", &state);
        command.envs(self.variables.iter().map(|(k, v)| (k, v))).envs(set.iter().map(|(k, v)| (*k, v)));
        let process = command.stdin(Stdio::null()).stdout(log()).stderr(log()).spawn().unwrap();
        warden::watch(&process);
        process
    }
}

fn given(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a proof that takes as long as PROOF_OVER says"]
async fn an_hours_worth_of_clean_shadow_traffic_shows_no_divergence() {
    let trace = given("PROOF_TRACE").expect("PROOF_TRACE names the trace");
    let trace = Path::new(&trace).canonicalize().expect("the trace exists");
    let over = humantime::parse_duration(&given("PROOF_OVER").unwrap_or("1h".into())).unwrap();
    let binary = given("PROOF_BINARY").unwrap_or(env!("CARGO_BIN_EXE_crossover").into());
    let binary = Path::new(&binary).canonicalize().unwrap().display().to_string();

    let mut postgres = provision::postgres(&servers::options()).await.unwrap();
    let mut temporal = provision::temporal(&servers::options()).await.unwrap();
    let ledger = Ledger::new(pool(&postgres.url, 4, Duration::from_secs(5)).unwrap());
    ledger.migrate().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let flags = folder.path().join("flags.json");
    world::document(Stage::Shadow).write_to(&flags).unwrap();
    let (api, house, runner) = (free_port(), free_port(), free_port());
    let set = [
        ("POSTGRES_URL", postgres.url.clone()),
        ("TEMPORAL_ADDRESS", temporal.address.clone()),
        ("FLAGS_FILE", flags.display().to_string()),
        ("RUNNER_URL", format!("http://127.0.0.1:{runner}/run")),
    ];
    let variables = set.map(|(key, value)| (format!("CROSSOVER_{key}"), value)).into();
    let bridge = Bridge { binary, folder, variables };
    let listen = |port: u16| [("CROSSOVER_HTTP_LISTEN", format!("127.0.0.1:{port}"))];
    let mut work = bridge.start("work", &["serve", "--roles", "router,worker"], &listen(api));
    let mut relay = bridge.start("relay", &["serve", "--roles", "relay"], &listen(house));

    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let ready = format!("http://127.0.0.1:{api}/readyz");
    until("serve is ready", async || http.get(&ready).send().await.ok().filter(|a| a.status().is_success())).await;
    let over_text = humantime::format_duration(over).to_string();
    let limit = given("PROOF_LIMIT").unwrap_or("1000000".into());
    let arguments = ["replay", trace.to_str().unwrap(), "--over", &over_text, "--limit", &limit, "--patience", "15m"];
    let mut replay = bridge.start("replay", &arguments, &listen(api));

    let began = Instant::now();
    let at = |share: f64| tokio::time::sleep_until((began + over.mul_f64(share)).into());
    at(0.25).await;
    println!("{:?}: Temporal is killed and started again", began.elapsed());
    temporal.server.kill().await.unwrap();
    temporal.server.restart().await.unwrap();
    at(0.5).await;
    println!("{:?}: Postgres is killed and started again", began.elapsed());
    postgres.server.kill().await.unwrap();
    postgres.server.restart().await.unwrap();
    at(0.75).await;
    println!("{:?}: the comparator is killed and started again", began.elapsed());
    relay.kill().unwrap();
    relay.wait().unwrap();
    relay = bridge.start("relay", &["serve", "--roles", "relay"], &listen(house));

    let status = tokio::task::spawn_blocking(move || replay.wait().unwrap()).await.unwrap();
    println!("{}", std::fs::read_to_string(bridge.folder.path().join("replay/log")).unwrap());
    println!("{:?}: the replay has ended: {status}", began.elapsed());
    let judged = async || {
        let open = "select count(*) from crossover.observations where verdict = 'in_flight'";
        let pins = "select count(*) from crossover.pins p where not exists
            (select from crossover.observations o where o.id = p.id)";
        let open: i64 = sqlx::query_scalar(open).fetch_one(ledger.pool()).await.ok()?;
        let unseen: i64 = sqlx::query_scalar(pins).fetch_one(ledger.pool()).await.ok()?;
        (open + unseen == 0).then_some(())
    };
    let mut left = 20;
    while judged().await.is_none() && left > 0 {
        tokio::time::sleep(Duration::from_secs(10)).await;
        left -= 1;
    }
    let rows = sqlx::query(
        "select verdict, coalesce(reason, '') as reason, count(*) as n from crossover.observations group by 1, 2 order by 3 desc",
    );
    for row in rows.fetch_all(ledger.pool()).await.unwrap() {
        println!(
            "{:>8}  {:<16} {}",
            row.get::<i64, _>("n"),
            row.get::<&str, _>("verdict"),
            row.get::<&str, _>("reason")
        );
    }
    let diverged = sqlx::query(
        "select id::text, classes::text, divergences::text as d from crossover.observations where verdict = 'diverged' limit 30",
    );
    let diverged = diverged.fetch_all(ledger.pool()).await.unwrap();
    for row in &diverged {
        println!("{} {} {}", row.get::<&str, _>("id"), row.get::<&str, _>("classes"), row.get::<&str, _>("d"));
    }
    let report = bridge.start("report", &["report"], &[]).wait().unwrap();
    println!("{}\nreport: {report}", std::fs::read_to_string(bridge.folder.path().join("report/log")).unwrap());
    if let Some(keep) = given("PROOF_KEEP") {
        for name in ["work", "relay", "replay", "report"] {
            std::fs::copy(bridge.folder.path().join(name).join("log"), Path::new(&keep).join(format!("{name}.log")))
                .unwrap();
        }
    }
    work.kill().unwrap();
    relay.kill().unwrap();
    work.wait().unwrap();
    relay.wait().unwrap();
    assert!(status.success(), "the replay broke a promise");
    assert!(judged().await.is_some(), "not everything was judged");
    assert!(diverged.is_empty(), "{} false divergences", diverged.len());
}
