//! What an operator asks, over rows as the comparator writes them, and over a bridge at work.

#[cfg(feature = "temporal")]
mod at_work;
mod report;
mod status;
mod why;

use std::process::{Command, Output};

use crossover::ledger::Ledger;
use serde_json::Value;
use uuid::Uuid;

use crate::servers;
use crate::sql_face;

/// A database of a test's own, and the program asked about it.
struct Asked {
    ledger: Ledger,
    url: String,
    folder: tempfile::TempDir,
}

impl Asked {
    async fn new() -> Self {
        let url = servers::database().await;
        let ledger = sql_face::ledger_at(&url).await;
        Self { ledger, url, folder: tempfile::tempdir().unwrap() }
    }

    async fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_crossover"));
        command.args(arguments).current_dir(self.folder.path()).env("CROSSOVER_POSTGRES_URL", &self.url);
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }

    /// What it prints for a machine, and its exit code.
    async fn json(&self, arguments: &[&str]) -> (Value, i32) {
        let output = self.run(&[arguments, &["--json"]].concat()).await;
        let (said, wrong) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let said = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}{wrong}"));
        (said, output.status.code().unwrap())
    }

    /// What it prints for a person.
    async fn text(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    async fn sql(&self, sql: &str) {
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(self.ledger.pool()).await.unwrap();
    }

    /// Pins `n` interactions of an account, with keys from `k1` on.
    async fn pins(&self, account: &str, stage: &str, n: i32) {
        let owner = if matches!(stage, "live" | "complete") { "postgres" } else { "temporal" };
        self.sql(&format!(
            "insert into crossover.pins (id, run_at, weight, on_temporal, on_postgres, stage, owner, account, kind, key, grp, flag_revision, payload_hash)
             select crossover.interaction_id('{account}', 'k' || n), now(), 100, true, true, '{stage}', '{owner}', '{account}', 'sync', 'k' || n,
                'default', 'file:1', sha256('1') from generate_series(1, {n}) n"
        ))
        .await;
    }

    /// Judges those with keys from `from` to `to`, as the comparator does.
    async fn judged(&self, account: &str, (from, to): (i32, i32), verdict: &str, classes: &[&str]) {
        let divergences: Vec<_> = classes
            .iter()
            .map(|class| serde_json::json!({ "class": class, "side": "postgres", "detail": format!("seen: {class}") }))
            .collect();
        self.sql(&format!(
            "insert into crossover.observations (id, pinned_at, run_at, judged_at, epoch, account, kind, stage, owner, verdict, classes, divergences)
             select p.id, p.created_at, p.run_at, now() + substr(p.key, 2)::integer * interval '1 millisecond', 1, p.account, p.kind, p.stage,
                p.owner, '{verdict}', '{{{}}}', '{}'::json
             from crossover.pins p where p.account = '{account}' and substr(p.key, 2)::integer between {from} and {to}",
            classes.join(","),
            serde_json::to_string(&divergences).unwrap(),
        ))
        .await;
    }

    /// A comparator at work.
    async fn comparator(&self) {
        self.sql("insert into crossover.comparators (name, pins_until, sightings_until) values ('one', now(), now())")
            .await;
    }
}

fn id(account: &str, key: &str) -> Uuid {
    crossover::interaction::interaction_id(account, key)
}
