//! Waits until everything accepted has ended, and looks each of it up.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::{StreamExt, stream};
use reqwest::{Client, StatusCode};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::runner::Runner;
use super::verdict::{Accepted, unsettled};
use crate::interaction::Outcome;

/// How everything accepted ended, by what the API says of it.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Settled {
    /// How many ended how.
    pub ended: BTreeMap<String, u64>,
    /// Accepted without a pin: the runner saw their ends, but some of them can't be looked up yet.
    pub unpinned: u64,
    /// Not ended when the time was over, each with its state.
    pub unended: BTreeMap<Uuid, String>,
    /// How long it took from the last answer on.
    pub took: Duration,
}

#[derive(Deserialize)]
struct Found {
    state: String,
    pin: Option<serde::de::IgnoredAny>,
}

const LOOKS_AT_ONCE: usize = 16;
const PAUSE: Duration = Duration::from_millis(250);

/// Waits for as long as `patience`: first for the runner to have seen the last of `accepted`, then for its end to be
/// looked up at `url`. Tells how many are still open.
pub async fn settle(
    url: &str,
    accepted: &[Accepted],
    runner: &Runner,
    patience: Duration,
    left: impl Fn(usize),
) -> Settled {
    let began = Instant::now();
    let mut settled = Settled::default();
    let open = loop {
        let open = unsettled(accepted, &runner.calls());
        left(open.len());
        if open.is_empty() || began.elapsed() > patience {
            break open;
        }
        tokio::time::sleep(PAUSE).await;
    };
    let client = Client::builder().no_proxy().timeout(Duration::from_secs(10)).build().unwrap_or_default();
    let mut ids: Vec<Uuid> = accepted.iter().map(|one| one.id).collect();
    loop {
        let looks = ids.iter().map(|id| look(&client, url, *id));
        let looks: Vec<_> = stream::iter(looks).buffer_unordered(LOOKS_AT_ONCE).collect().await;
        ids.clear();
        settled.unended.clear();
        for (id, state) in looks {
            match state {
                Look::Ended(outcome) => *settled.ended.entry(outcome).or_default() += 1,
                // What no pin tells of, the runner tells of.
                Look::Unpinned if !open.contains(&id) => settled.unpinned += 1,
                Look::Unpinned => {
                    _ = settled.unended.insert(id, "not pinned, and the runner hasn't seen its end".into())
                }
                Look::Open(state) => {
                    ids.push(id);
                    settled.unended.insert(id, state);
                }
            }
        }
        if ids.is_empty() || began.elapsed() > patience {
            break;
        }
        left(ids.len());
        tokio::time::sleep(PAUSE).await;
    }
    settled.took = began.elapsed();
    settled
}

enum Look {
    Ended(String),
    Unpinned,
    Open(String),
}

async fn look(client: &Client, url: &str, id: Uuid) -> (Uuid, Look) {
    let found = async {
        let response = client.get(format!("{}/v1/interactions/{id}", url.trim_end_matches('/'))).send().await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(Look::Unpinned);
        }
        let found: Found = response.error_for_status()?.json().await?;
        Ok::<_, reqwest::Error>(match found.state.parse::<Outcome>() {
            Ok(outcome) => Look::Ended(outcome.to_string()),
            Err(_) if found.pin.is_none() => Look::Unpinned,
            Err(_) => Look::Open(found.state),
        })
    };
    (id, found.await.unwrap_or_else(|error| Look::Open(format!("can't be looked up: {}", error.without_url()))))
}
