//! A Prometheus that scrapes what a test gives it, and promtool.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crossover::provision::{self, Options, Prometheus, PrometheusFiles};
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
#[allow(dead_code)]
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
        let options = match std::env::var_os("CROSSOVER_TEST_PROMETHEUS_DATA") {
            // For whoever wants to draw what a test saw.
            Some(folder) => servers::options().keeping(Path::new(&folder)),
            None => servers::options(),
        };
        Self::with(&options, targets, rules).await
    }

    async fn with(options: &Options, targets: &[&str], rules: Option<String>) -> Self {
        let config = config(targets, rules.is_some());
        let given =
            PrometheusFiles { config, beside: rules.map(|text| ("alerts.yml".to_owned(), text)).into_iter().collect() };
        let server = provision::prometheus(options, &programs().await, &given).await;
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
        let value = |point: &Value| point[1].as_str().unwrap().parse().unwrap();
        match data["resultType"].as_str().unwrap() {
            "vector" => data["result"].as_array().unwrap().iter().map(|series| value(&series["value"])).collect(),
            _ => vec![value(&data["result"])],
        }
    }
}
