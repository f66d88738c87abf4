//! Changes the flags in Unleash by its admin API, one call a change, each only if the strategy still is what it was when
//! the change was planned: a JSON Patch that begins with a `test`. Unleash reads, tests and writes a strategy without a
//! lock, so an edit of the same strategy within those milliseconds can still be lost; whoever changes flags here reads
//! them again afterwards and repairs what of theirs is missing.

use std::collections::BTreeMap;
use std::time::Duration;

use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue};
use reqwest::{Client, Method, StatusCode, Url};
use serde_json::{Value, json};

use super::answer::off;
use crate::config;
use crate::flags::document::{Document, Fault, Flag};
use crate::flags::edit::{Change, List};

/// The way to Unleash's admin API.
#[derive(Debug, Clone)]
pub struct Admin {
    client: Client,
    base: Url,
    project: String,
    environment: String,
    timeout: Duration,
    accept_missing: Vec<Flag>,
}

/// The flags in Unleash as they were read, and which of its strategies is which.
#[derive(Debug)]
pub struct Stored {
    /// The flags, as a file would hold them.
    pub document: Document,
    places: BTreeMap<Flag, Vec<Placed>>,
    unread: BTreeMap<Flag, Unread>,
}

/// A flag that could not be read, and is off in the document.
#[derive(Debug)]
struct Unread {
    found: Value,
    why: Unreadable,
}

#[derive(Debug, Clone)]
enum Unreadable {
    /// The flag, the project and the environment; and whether that is meant.
    Missing {
        what: String,
        meant: bool,
    },
    /// It still answers here, and routers get it no more.
    Archived {
        what: String,
        meant: bool,
    },
    Faults(Vec<Fault>),
}

impl From<Unreadable> for AdminError {
    fn from(why: Unreadable) -> Self {
        match why {
            Unreadable::Missing { what, .. } => Self::Missing { what },
            Unreadable::Archived { what, .. } => Self::Archived { what },
            Unreadable::Faults(faults) => Self::Faults(faults),
        }
    }
}

impl Stored {
    /// Refuses changes of a flag that could not be read, and a plan for an account that such a flag names: what is off
    /// in the document may be on.
    pub fn allows(&self, account: &str, changes: &[Change]) -> Result<(), AdminError> {
        let touched = |(flag, unread): &(&Flag, &Unread)| {
            changes.iter().any(|change| change.flag() == **flag) || names(&unread.found, account)
        };
        self.unread.iter().find(touched).map_or(Ok(()), |(_, unread)| Err(unread.why.clone().into()))
    }

    /// What could not be read and need not be changed.
    pub fn notes(&self) -> Vec<String> {
        let unknown = |unread: &&Unread| {
            !matches!(unread.why, Unreadable::Missing { meant: true, .. } | Unreadable::Archived { meant: true, .. })
        };
        let line = |unread: &Unread| {
            let error = AdminError::from(unread.why.clone());
            format!("{error}; taken for off here, while routers go by its last definition")
        };
        self.unread.values().filter(unknown).map(line).collect()
    }
}

/// Whether an account is among the texts of a flag, or in a list of one.
fn names(found: &Value, account: &str) -> bool {
    match found {
        Value::String(text) => text.split(',').any(|name| name.trim() == account),
        Value::Array(list) => list.iter().any(|one| names(one, account)),
        Value::Object(fields) => fields.values().any(|one| names(one, account)),
        _ => false,
    }
}

#[derive(Debug, Clone)]
struct Placed {
    id: String,
    constraints: Value,
    parameters: Value,
}

/// Unleash did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// A setting is missing or can't be used.
    #[error("{0}")]
    Setting(String),
    /// No answer.
    #[error("Unleash can't be asked ({what}): {why}; what was changed before stands, repeat the command")]
    Unreachable {
        /// What was asked.
        what: String,
        /// What went wrong.
        why: String,
    },
    /// The token may not.
    #[error(
        "Unleash refuses flags.admin_token ({status}, {what}): it needs to read and update strategies of the project"
    )]
    Denied {
        /// What was asked.
        what: String,
        /// 401 or 403.
        status: StatusCode,
    },
    /// It has no such flag.
    #[error("Unleash has no {what}; see flags.project and flags.environment, and import flags/unleash-import.json")]
    Missing {
        /// The flag, the project and the environment.
        what: String,
    },
    /// The flag is in the archive: it could be changed, and no router would ever see it.
    #[error("Unleash has archived {what}: no router is given it any more; revive it in Unleash's archive")]
    Archived {
        /// The flag, the project and the environment.
        what: String,
    },
    /// It says no.
    #[error("Unleash refuses ({status}, {what}): {said}")]
    Refused {
        /// What was asked.
        what: String,
        /// The answer.
        status: StatusCode,
        /// Its words.
        said: String,
    },
    /// What it holds can't be understood.
    #[error("Unleash's flags can't be used: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Faults(Vec<Fault>),
}

/// Most answers hold less.
const SAID: usize = 500;

impl Admin {
    /// As the configuration says; the error names the setting that is missing.
    pub fn new(config: &config::Flags) -> Result<Self, AdminError> {
        let setting = |what: &str| AdminError::Setting(what.to_owned());
        let url = config
            .admin_url
            .as_ref()
            .or(config.url.as_ref())
            .ok_or(setting("flags.url is not set: where is Unleash?"))?;
        let token = config.admin_token.as_ref().ok_or(setting(
            "flags.admin_token is not set: a token of Unleash that may update strategies; \
             without it, change the flags in Unleash itself",
        ))?;
        let mut token = HeaderValue::from_str(token.expose())
            .map_err(|_| setting("flags.admin_token can't be sent in a header"))?;
        token.set_sensitive(true);
        let client = Client::builder()
            .default_headers(HeaderMap::from_iter([
                (AUTHORIZATION, token),
                (ACCEPT, HeaderValue::from_static("application/json")),
            ]))
            .user_agent(super::transport::SDK)
            .timeout(config.timeout)
            // A login page somewhere else is no answer, and is not to see the token.
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| AdminError::Setting(error.to_string()))?;
        let base = url.expose().trim_end_matches('/');
        let base =
            Url::parse(base.strip_suffix("/api").unwrap_or(base)).map_err(|_| setting("flags.admin_url is no URL"))?;
        let (project, environment) = (config.project.clone(), config.environment.clone());
        let accepted = |flag: &Flag| config.accept_missing.contains(&flag.name());
        let accept_missing = Flag::ALL.into_iter().filter(accepted).collect();
        Ok(Self { client, base, project, environment, timeout: config.timeout, accept_missing })
    }

    /// Reads the four flags. One that is missing or can't be used keeps none of the others from being changed.
    pub async fn read(&self) -> Result<Stored, AdminError> {
        let (mut features, mut places, mut unread) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        for flag in Flag::ALL {
            let what = format!("{} of project {} in environment {}", flag.name(), self.project, self.environment);
            let meant = self.accept_missing.contains(&flag);
            let found = match self.call(Method::GET, self.path(flag, &[]), None, &what).await {
                Err(AdminError::Missing { what }) => {
                    unread.insert(flag, Unread { found: Value::Null, why: Unreadable::Missing { what, meant } });
                    Value::Null
                }
                Ok(found) if self.is_archived(flag, &what).await? => {
                    // Where its absence is meant, routers take it for off; else for what it was.
                    let found = if meant { Value::Null } else { found };
                    unread.insert(flag, Unread { found, why: Unreadable::Archived { what, meant } });
                    Value::Null
                }
                other => other?,
            };
            let (feature, placed) = normal(flag, &found);
            features.push((flag, feature));
            places.insert(flag, placed);
        }
        // That is another project or environment.
        if unread.len() == Flag::ALL.len()
            && let Some((_, Unread { why, .. })) = unread.pop_first()
        {
            return Err(why.into());
        }
        let segments = match features.iter().any(|(_, feature)| uses_segments(feature)) {
            true => self.call(Method::GET, self.url(&["segments"]), None, "segments").await?,
            false => Value::Null,
        };
        let segments: Vec<Value> = segments["segments"].as_array().into_iter().flatten().map(segment).collect();
        let document = |features: &[&Value]| {
            let document = json!({ "version": 2, "features": features, "segments": segments });
            Document::parse(&document.to_string())
        };
        for n in 0..features.len() {
            let others: Vec<Value> = features.iter().map(|(flag, _)| off(*flag)).collect();
            let alone: Vec<&Value> =
                (0..others.len()).map(|m| if m == n { &features[n].1 } else { &others[m] }).collect();
            if let Err(faults) = document(&alone) {
                let (flag, feature) = &mut features[n];
                let found = std::mem::replace(feature, off(*flag));
                unread.insert(*flag, Unread { found, why: Unreadable::Faults(faults) });
            }
        }
        let features: Vec<&Value> = features.iter().map(|(_, feature)| feature).collect();
        let document = document(&features).map_err(AdminError::Faults)?;
        Ok(Stored { document, places, unread })
    }

    /// Whether a flag that answers is in the archive: its environments do so from there, it itself does not.
    async fn is_archived(&self, flag: Flag, what: &str) -> Result<bool, AdminError> {
        let url = self.url(&["projects", &self.project, "features", flag.name()]);
        match self.call(Method::GET, url, None, what).await {
            Err(AdminError::Missing { .. }) => Ok(true),
            other => Ok(other?["archived"] == true),
        }
    }

    /// Makes one change of what `stored` holds; false: its strategy is no longer what it was, and nothing was changed.
    pub async fn apply(&self, stored: &Stored, change: &Change) -> Result<bool, AdminError> {
        let what = change.to_string();
        let (method, url, body) = match change {
            Change::Enable { flag } => (Method::POST, self.path(*flag, &["on"]), json!({})),
            Change::Add { flag, strategy } => (Method::POST, self.path(*flag, &["strategies"]), json!(strategy)),
            Change::Names { flag, strategy, list, after, .. } => {
                let placed = stored.places.get(flag).and_then(|list| list.get(*strategy));
                let Some(placed) = placed else { return Ok(false) };
                (Method::PATCH, self.path(*flag, &["strategies", &placed.id]), placed.patch(*list, after))
            }
        };
        match self.call(method, url, Some(body), &what).await {
            Ok(_) => Ok(true),
            Err(AdminError::Refused { said, .. }) if said.contains("TEST_OPERATION_FAILED") => Ok(false),
            Err(AdminError::Missing { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn path(&self, flag: Flag, more: &[&str]) -> Url {
        let own = ["projects", &self.project, "features", flag.name(), "environments", &self.environment];
        self.url(&[&own, more].concat())
    }

    fn url(&self, segments: &[&str]) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(["api", "admin"]).extend(segments);
        }
        url
    }

    async fn call(&self, method: Method, url: Url, body: Option<Value>, what: &str) -> Result<Value, AdminError> {
        let what = what.to_owned();
        let mut request = self.client.request(method, url);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let failed = |error: reqwest::Error| {
            let why = match error.is_timeout() {
                true => format!("no answer within {:?}", self.timeout),
                false => error.without_url().to_string(),
            };
            AdminError::Unreachable { what: what.clone(), why }
        };
        let response = request.send().await.map_err(failed)?;
        let status = response.status();
        let text = response.text().await.map_err(failed)?;
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(AdminError::Denied { what, status }),
            StatusCode::NOT_FOUND => Err(AdminError::Missing { what }),
            status if status.is_success() => Ok(serde_json::from_str(&text).unwrap_or(Value::Null)),
            status => Err(AdminError::Refused { what, status, said: text.chars().take(SAID).collect() }),
        }
    }
}

impl Placed {
    /// Replaces one list, if the strategy still decides as it did.
    fn patch(&self, list: List, after: &[String]) -> Value {
        let replace = match list {
            List::UserIds => json!({ "op": "replace", "path": "/parameters/userIds", "value": after.join(",") }),
            List::Constraint(n) => {
                json!({ "op": "replace", "path": format!("/constraints/{n}/values"), "value": after })
            }
        };
        json!([
            { "op": "test", "path": "/constraints", "value": self.constraints },
            { "op": "test", "path": "/parameters", "value": self.parameters },
            replace,
        ])
    }
}

/// A flag as a file would hold it, and the strategies that count, with their ids.
fn normal(flag: Flag, found: &Value) -> (Value, Vec<Placed>) {
    let all = found["strategies"].as_array().map_or(&[][..], Vec::as_slice);
    let used: Vec<&Value> = all.iter().filter(|strategy| strategy["disabled"] != true).collect();
    let strategies: Vec<Value> = match flag {
        Flag::Kill if used.is_empty() => vec![json!({ "name": "default", "constraints": [] })],
        _ => used.iter().map(|strategy| plain(strategy)).collect(),
    };
    let placed = used.iter().map(|strategy| Placed {
        id: strategy["id"].as_str().unwrap_or_default().to_owned(),
        constraints: strategy["constraints"].clone(),
        parameters: strategy["parameters"].clone(),
    });
    let enabled = found["enabled"] == true && !strategies.is_empty();
    (json!({ "name": flag.name(), "enabled": enabled, "strategies": strategies }), placed.collect())
}

fn plain(strategy: &Value) -> Value {
    let mut plain = json!({ "name": strategy["name"], "constraints": constraints(strategy) });
    if strategy["parameters"].as_object().is_some_and(|parameters| !parameters.is_empty()) {
        plain["parameters"] = strategy["parameters"].clone();
    }
    if uses(strategy) {
        plain["segments"] = strategy["segments"].clone();
    }
    plain
}

fn segment(segment: &Value) -> Value {
    json!({ "id": segment["id"], "constraints": constraints(segment) })
}

/// Constraints with the fields that say something.
fn constraints(of: &Value) -> Value {
    let said = |constraint: &Value| {
        let mut plain = serde_json::Map::new();
        for field in ["contextName", "operator", "values", "value", "inverted", "caseInsensitive"] {
            let value = &constraint[field];
            let says_nothing = value.is_null()
                || *value == json!(false)
                || *value == json!("")
                || value.as_array().is_some_and(Vec::is_empty);
            if !says_nothing {
                plain.insert(field.to_owned(), value.clone());
            }
        }
        Value::Object(plain)
    };
    of["constraints"].as_array().map_or_else(|| json!([]), |list| list.iter().map(said).collect())
}

fn uses(strategy: &Value) -> bool {
    strategy["segments"].as_array().is_some_and(|segments| !segments.is_empty())
}

fn uses_segments(feature: &Value) -> bool {
    feature["strategies"].as_array().into_iter().flatten().any(uses)
}
