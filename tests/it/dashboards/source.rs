//! `dashboards/panels.toml`, read, and the JSON that Grafana imports, made of it.

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    dashboard: Vec<Dashboard>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dashboard {
    pub uid: String,
    pub file: String,
    pub title: String,
    pub text: String,
    pub row: Vec<Row>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    pub title: String,
    pub panel: Vec<Panel>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Panel {
    pub title: String,
    #[serde(default)]
    kind: Kind,
    pub unit: String,
    pub text: String,
    width: Option<u64>,
    #[serde(default)]
    pub steps: Vec<(f64, String)>,
    /// Instead of values.
    #[serde(default)]
    pub words: Vec<(f64, String)>,
    /// `always`, or why it may be empty.
    pub data: String,
    pub queries: Vec<Query>,
}

#[derive(Default, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    #[default]
    Lines,
    Stat,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Query {
    pub expr: String,
    pub legend: String,
    /// Instead of the panel's.
    pub data: Option<String>,
}

pub fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/dashboards"))
}

pub fn dashboards() -> Vec<Dashboard> {
    let text = std::fs::read_to_string(folder().join("panels.toml")).unwrap();
    let source: Source = toml::from_str(&text).unwrap_or_else(|error| panic!("panels.toml: {error}"));
    source.dashboard
}

impl Dashboard {
    pub fn panels(&self) -> impl Iterator<Item = &Panel> {
        self.row.iter().flat_map(|row| &row.panel)
    }

    /// As Grafana imports it.
    pub fn json(&self) -> Value {
        json!({
            "uid": self.uid,
            "title": self.title,
            "description": self.text,
            "tags": ["crossover"],
            "schemaVersion": 39,
            "version": 1,
            "editable": true,
            "graphTooltip": 1,
            "refresh": "30s",
            "time": { "from": "now-1h", "to": "now" },
            "timezone": "browser",
            "links": [{ "type": "dashboards", "tags": ["crossover"], "title": "Crossover", "asDropdown": false,
                "includeVars": true, "keepTime": true, "targetBlank": false, "icon": "external link", "tooltip": "", "url": "" }],
            "templating": { "list": [
                { "name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "hide": 0,
                  "refresh": 1, "regex": "", "current": {}, "options": [], "multi": false, "includeAll": false },
                { "name": "job", "label": "Job", "type": "query", "datasource": datasource(), "refresh": 2, "sort": 1,
                  "query": { "query": "label_values(crossover_build_info, job)", "refId": "job" },
                  "definition": "label_values(crossover_build_info, job)", "hide": 0, "regex": "", "current": {},
                  "options": [], "multi": true, "includeAll": true, "allValue": ".*" },
            ] },
            "annotations": { "list": [flips()] },
            "panels": self.laid_out(),
        })
    }

    /// Rows of up to 24 columns.
    fn laid_out(&self) -> Vec<Value> {
        let (mut panels, mut y) = (Vec::new(), 0);
        for row in &self.row {
            let at = json!({ "x": 0, "y": y, "w": 24, "h": 1 });
            panels.push(json!({ "id": panels.len() + 1, "type": "row", "title": row.title, "gridPos": at,
                "collapsed": false, "panels": [] }));
            y += 1;
            let (mut x, mut tallest) = (0, 0);
            for panel in &row.panel {
                let (width, height) = panel.size();
                if x + width > 24 {
                    (x, y) = (0, y + tallest);
                }
                let mut drawn = panel.json();
                drawn["id"] = json!(panels.len() + 1);
                drawn["gridPos"] = json!({ "x": x, "y": y, "w": width, "h": height });
                panels.push(drawn);
                (x, tallest) = (x + width, height);
            }
            y += tallest;
        }
        panels
    }
}

impl Panel {
    fn size(&self) -> (u64, u64) {
        let (width, height) = if self.kind == Kind::Stat { (4, 4) } else { (12, 8) };
        (self.width.unwrap_or(width), height)
    }

    pub fn json(&self) -> Value {
        let stat = self.kind == Kind::Stat;
        json!({
            "type": if stat { "stat" } else { "timeseries" },
            "title": self.title,
            "description": self.text,
            "datasource": datasource(),
            "fieldConfig": { "defaults": self.defaults(), "overrides": [] },
            "options": if stat { stat_options() } else { lines_options() },
            "targets": self.queries.iter().zip('A'..).map(|(query, name)| query.json(name, stat)).collect::<Vec<_>>(),
        })
    }

    fn defaults(&self) -> Value {
        let first = |steps: &[(f64, String)]| steps.first().map_or("green".to_owned(), |(_, color)| color.clone());
        // Grafana's first step has no value: it begins at minus infinity.
        let mut steps = vec![json!({ "value": null, "color": first(&self.steps) })];
        steps.extend(self.steps.iter().skip(1).map(|(value, color)| json!({ "value": value, "color": color })));
        let area = if self.kind == Kind::Lines && self.steps.len() > 1 { "dashed" } else { "off" };
        let color = if self.kind == Kind::Stat { "thresholds" } else { "palette-classic" };
        let mut defaults = json!({
            "unit": self.unit, "min": 0, "color": { "mode": color }, "mappings": self.mappings(),
            "thresholds": { "mode": "absolute", "steps": steps },
        });
        if self.kind == Kind::Lines {
            defaults["custom"] = json!({ "drawStyle": "line", "lineWidth": 1, "fillOpacity": 8, "showPoints": "never",
                "spanNulls": false, "lineInterpolation": "linear", "stacking": { "mode": "none", "group": "A" },
                "thresholdsStyle": { "mode": area } });
        }
        defaults
    }
}

impl Panel {
    fn mappings(&self) -> Vec<Value> {
        let option =
            |(n, (value, text)): (usize, &(f64, String))| (value.to_string(), json!({ "index": n, "text": text }));
        let options: serde_json::Map<String, Value> = self.words.iter().enumerate().map(option).collect();
        if options.is_empty() { Vec::new() } else { vec![json!({ "type": "value", "options": options })] }
    }
}

impl Query {
    fn json(&self, name: char, instant: bool) -> Value {
        json!({ "refId": name.to_string(), "datasource": datasource(), "editorMode": "code", "expr": of_the_job(&self.expr),
            "legendFormat": self.legend, "instant": instant, "range": !instant })
    }
}

fn datasource() -> Value {
    json!({ "type": "prometheus", "uid": "${datasource}" })
}

/// Every flip as a line through every panel. The second part sees the first decision of its kind, which no increase shows.
fn flips() -> Value {
    let seen = "sum by (to, source) (increase(crossover_decisions_total[1m])) > 0 \
        or sum by (to, source) (crossover_decisions_total unless crossover_decisions_total offset 1m) > 0";
    json!({ "name": "Flips", "datasource": datasource(), "enable": true, "hide": false, "iconColor": "purple",
        "expr": of_the_job(seen), "step": "15s", "titleFormat": "Flip to {{to}}", "textFormat": "seen through {{source}}",
        "tagKeys": "to,source", "useValueForTime": false })
}

fn stat_options() -> Value {
    json!({ "reduceOptions": { "calcs": ["lastNotNull"], "fields": "", "values": false }, "colorMode": "value",
        "graphMode": "none", "justifyMode": "auto", "orientation": "auto", "textMode": "value" })
}

fn lines_options() -> Value {
    json!({ "legend": { "displayMode": "table", "placement": "bottom", "showLegend": true, "calcs": ["lastNotNull", "max"] },
        "tooltip": { "mode": "multi", "sort": "desc" } })
}

/// The metrics that an expression names.
pub fn metrics_of(expression: &str) -> Vec<String> {
    split(expression).into_iter().filter(|(_, is_metric)| *is_metric).map(|(word, _)| word.to_owned()).collect()
}

/// Narrows every metric of an expression to the job that is chosen.
fn of_the_job(expression: &str) -> String {
    let words = split(expression);
    let mut narrowed = String::new();
    for (place, (word, is_metric)) in words.iter().enumerate() {
        let opens = place.checked_sub(1).is_some_and(|before| words[before].1) && word.starts_with('{');
        narrowed += &if opens { format!("{{job=~\"$job\",{}", &word[1..]) } else { (*word).to_owned() };
        let has_labels = words.get(place + 1).is_some_and(|(next, _)| next.starts_with('{'));
        if *is_metric && !has_labels {
            narrowed += "{job=~\"$job\"}";
        }
    }
    narrowed
}

/// Words and what is between them, in order; whether each is a metric of ours or of a library that we carry.
fn split(expression: &str) -> Vec<(&str, bool)> {
    let part_of_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut parts = Vec::new();
    let mut rest = expression;
    while let Some(first) = rest.chars().next() {
        let word = part_of_word(first);
        let end = rest.find(|c| part_of_word(c) != word).unwrap_or(rest.len());
        let (part, after) = rest.split_at(end);
        let ours = ["crossover_", "temporal_", "process_"].iter().any(|prefix| part.starts_with(prefix));
        parts.push((part, ours));
        rest = after;
    }
    parts
}

#[test]
fn every_metric_is_narrowed_to_the_job_with_and_without_labels() {
    let narrowed = of_the_job("sum(rate(crossover_a_total{to=\"x\"}[5m])) / crossover_b");
    assert_eq!(narrowed, "sum(rate(crossover_a_total{job=~\"$job\",to=\"x\"}[5m])) / crossover_b{job=~\"$job\"}");
}
