//! Facts about `dashboards/`: the JSON is what `panels.toml` says, every metric it or a rule names exists, every alert
//! has its page and its test, and a real Prometheus that scraped a real run has something to show in every panel.

mod prometheus;
mod run;
mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crossover::metrics::Metrics;
use serde_json::Value;

use prometheus::{Prom, config, promtool};
use source::{dashboards, folder, metrics_of};

/// What Prometheus makes of one of our histograms.
const PARTS: [&str; 3] = ["_bucket", "_sum", "_count"];

fn documented() -> BTreeSet<String> {
    Metrics::new().unwrap().documented().iter().map(|metric| metric.name.clone()).collect()
}

fn exists(metric: &str, documented: &BTreeSet<String>) -> bool {
    let whole = |part: &str| metric.strip_suffix(part).is_some_and(|name| documented.contains(name));
    documented.contains(metric) || PARTS.into_iter().any(whole)
}

/// The rules, as a Prometheus has read them: name and rule.
async fn rules(prom: &Prom) -> BTreeMap<String, Value> {
    let groups = prom.api("rules", &[]).await["groups"].clone();
    let rules = groups.as_array().unwrap().iter().flat_map(|group| group["rules"].as_array().unwrap().clone());
    rules.map(|rule| (rule["name"].as_str().unwrap().to_owned(), rule)).collect()
}

fn alerts() -> String {
    std::fs::read_to_string(folder().join("alerts.yml")).unwrap()
}

#[test]
fn the_dashboards_are_what_their_source_says() {
    for dashboard in dashboards() {
        let page = format!("dashboards/{}", dashboard.file);
        crate::docs::same(&page, &format!("{:#}\n", dashboard.json()));
    }
}

#[test]
fn what_is_a_yes_or_a_no_is_shown_as_a_word() {
    let dashboards = dashboards();
    let panels: Vec<_> = dashboards.iter().flat_map(|dashboard| dashboard.panels()).collect();
    let flags = panels.iter().find(|panel| panel.title == "Flags").unwrap();
    let mappings = &flags.json()["fieldConfig"]["defaults"]["mappings"];
    let options = &mappings[0]["options"];
    assert_eq!(
        (mappings[0]["type"].as_str(), options["1"]["text"].as_str()),
        (Some("value"), Some("good")),
        "{mappings}"
    );
    for panel in panels.iter().filter(|panel| !panel.words.is_empty()) {
        for (value, _) in &panel.steps {
            assert!(panel.words.iter().any(|(of, _)| of == value), "{}: {value} has no word", panel.title);
        }
    }
}

#[test]
fn every_panel_says_what_it_shows_and_names_metrics_that_exist() {
    let documented = documented();
    for dashboard in dashboards() {
        let mut titles = BTreeSet::new();
        for panel in dashboard.panels() {
            let of = format!("{}: {}", dashboard.file, panel.title);
            assert!(titles.insert(&panel.title), "{of} is there twice");
            assert!(panel.text.len() > 20 && !panel.unit.is_empty(), "{of} does not say what it shows");
            for query in &panel.queries {
                let metrics = metrics_of(&query.expr);
                assert!(!metrics.is_empty() && !query.legend.is_empty(), "{of}: {}", query.expr);
                for metric in metrics {
                    assert!(
                        exists(&metric, &documented),
                        "{of} asks for {metric}, which docs/metrics.md does not have"
                    );
                }
            }
        }
    }
}

#[tokio::test]
async fn every_alert_names_metrics_that_exist_and_has_a_page_and_a_test() {
    let prom = Prom::start(&[], Some(alerts())).await;
    let (documented, tests) = (documented(), std::fs::read_to_string(folder().join("alerts.test.yml")).unwrap());
    let mut pages = BTreeSet::from(["README.md".to_owned()]);
    for (name, rule) in rules(&prom).await {
        for metric in metrics_of(rule["query"].as_str().unwrap()) {
            assert!(exists(&metric, &documented), "{name} asks for {metric}, which docs/metrics.md does not have");
        }
        let severity = rule["labels"]["severity"].as_str().unwrap_or_default();
        assert!(["page", "warning", "info"].contains(&severity), "{name} has severity {severity:?}");
        for note in ["summary", "description", "runbook_url"] {
            assert!(rule["annotations"][note].is_string(), "{name} has no {note}");
        }
        let page = Path::new(rule["annotations"]["runbook_url"].as_str().unwrap());
        let text = std::fs::read_to_string(folder().join("..").join(page));
        let text = text.unwrap_or_else(|error| panic!("{name}: {}: {error}", page.display()));
        assert!(text.contains(&format!("`{name}`")), "{} does not speak of {name}", page.display());
        for heading in ["## What it means", "## What to look at", "## What to do", "## When it is harmless"] {
            assert!(text.contains(heading), "{} lacks {heading:?}", page.display());
        }
        assert!(tests.contains(&format!("alertname: {name}\n")), "alerts.test.yml does not test {name}");
        pages.insert(page.file_name().unwrap().to_string_lossy().into_owned());
    }
    let found = std::fs::read_dir(folder().join("../docs/runbook")).unwrap();
    let found: BTreeSet<_> = found.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    assert_eq!(found, pages, "docs/runbook has other pages than the alerts");
}

#[tokio::test]
async fn promtool_is_content_with_rules_configuration_and_their_tests() {
    let place = tempfile::tempdir().unwrap();
    for file in ["alerts.yml", "alerts.test.yml"] {
        std::fs::copy(folder().join(file), place.path().join(file)).unwrap();
    }
    std::fs::write(place.path().join("prometheus.yml"), config(&["127.0.0.1:9"], true)).unwrap();
    promtool(place.path(), &["check", "config", "prometheus.yml"]).await;
    promtool(place.path(), &["check", "rules", "--lint=all", "--lint-fatal", "alerts.yml"]).await;
    promtool(place.path(), &["test", "rules", "alerts.test.yml"]).await;
}
