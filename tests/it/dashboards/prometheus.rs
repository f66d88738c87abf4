//! A Prometheus that scrapes what a test gives it, and promtool.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use chrono::{DateTime, Utc};
use crossover::provision::{self, Prometheus, PrometheusFiles};
use serde_json::Value;

use crate::servers;

/// What it scrapes by, and how often it looks at rules.
const INTERVAL: &str = "1s";

/// Where `prometheus` and `promtool` are: in the cache, fetched once, or where this variable says.
pub async fn programs() -> PathBuf {
    match std::env::var_os("CROSSOVER_TEST_PROMETHEUS_DIR") {
        Some(folder) => folder.into(),
        None => provision::prometheus_programs(&servers::options()).await.unwrap_or_else(|error| panic!("{error}")),
    }
}

/// Runs promtool in `folder`; it must be content. What it printed.
pub async fn promtool(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new(programs().await.join("promtool")).args(arguments).current_dir(folder).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "promtool {}:\n{said}", arguments.join(" "));
    said
}

/// A configuration that scrapes these addresses and, where given, judges `alerts.yml` beside it.
pub fn config(targets: &[&str], rules: bool) -> String {
    let targets = targets.iter().map(|target| format!("\"{target}\"")).collect::<Vec<_>>().join(", ");
    let rules = if rules { "rule_files: [alerts.yml]\n" } else { "" };
    format!(
        "global: {{ scrape_interval: {INTERVAL}, evaluation_interval: {INTERVAL} }}\n{rules}scrape_configs:\n\
         - job_name: crossover\n  static_configs: [{{ targets: [{targets}] }}]\n"
    )
}

/// A running Prometheus.
pub struct Prom {
    pub server: Prometheus,
    http: reqwest::Client,
}

impl Prom {
    /// One that scrapes these addresses, and judges these rules.
    pub async fn start(targets: &[&str], rules: Option<String>) -> Self {
        let config = config(targets, rules.is_some());
        let given =
            PrometheusFiles { config, beside: rules.map(|text| ("alerts.yml".to_owned(), text)).into_iter().collect() };
        let server = provision::prometheus(&servers::options(), &programs().await, &given).await;
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(20)).build().unwrap();
        Self { server: server.unwrap_or_else(|error| panic!("{error}")), http }
    }

    /// What the API answers, which must be a success.
    pub async fn api(&self, path: &str, query: &[(&str, &str)]) -> Value {
        let url = reqwest::Url::parse_with_params(&format!("{}/api/v1/{path}", self.server.url), query).unwrap();
        let answer = self.http.get(url).send().await.unwrap();
        let body: Value = answer.json().await.unwrap();
        assert_eq!(body["status"], "success", "{path} {query:?}: {body:#}");
        body["data"].clone()
    }

    /// The values of an instant query, without their labels.
    pub async fn query(&self, expression: &str) -> Vec<f64> {
        let data = self.api("query", &[("query", expression)]).await;
        match data["resultType"].as_str().unwrap() {
            "vector" => data["result"].as_array().unwrap().iter().map(|series| value(&series["value"])).collect(),
            _ => vec![value(&data["result"])],
        }
    }

    /// Whether a query had a number to show at any second since `start`.
    pub async fn showed(&self, expression: &str, start: DateTime<Utc>) -> bool {
        let (start, end) = (start.to_rfc3339(), Utc::now().to_rfc3339());
        let query = [("query", expression), ("start", &start), ("end", &end), ("step", INTERVAL)];
        let data = self.api("query_range", &query).await;
        let points = data["result"].as_array().unwrap().iter().flat_map(|series| series["values"].as_array().unwrap());
        points.map(value).any(f64::is_finite)
    }
}

/// Of a point: when, and how much.
fn value(point: &Value) -> f64 {
    point[1].as_str().unwrap().parse().unwrap()
}
