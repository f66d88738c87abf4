//! Follows the four flags in Unleash.
//!
//! `transport` asks: with a bound on time and size, with our ETag, and it takes nothing but a good answer for one.
//! `answer` reads it for our four flags alone, `judge` decides what follows, and what comes into force is a checked
//! [`Document`] like a file's. What can't be used changes nothing but the health: the flags in force stay, a flag
//! that is missing or unusable keeps its last definition while the others act, an older revision has to insist.
//! `counts` tells Unleash how the flags were answered.
//!
//! The last good document is kept on disk, for the start while Unleash is away; its age goes on over restarts.

pub mod admin;
mod answer;
mod counts;
mod judge;
#[cfg(test)]
mod tests;
mod transport;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::Utc;
use rand::RngExt;
use reqwest::Url;
use reqwest::header::HeaderValue;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use self::answer::Answer;
pub(super) use self::counts::Counts;
use self::counts::Reporter;
use self::judge::{Leave, Verdict, judge, pause};
use self::transport::{Failure, Reply, Transport};
use super::FlagsError;
use super::document::{Document, Flag};
use super::in_force::InForce;
use super::store::LastGood;
use crate::config::{self, Secret, SecretUrl};
use crate::metrics::FlagMetrics;

/// So often the whole document is asked for, whatever the ETag says: a server restored from a backup may come to the
/// same revision again with other flags.
const WHOLE: Duration = Duration::from_secs(300);
/// The stored copy's time is noted no more often.
const NOTE: Duration = Duration::from_secs(10);

/// Which Unleash, and how it is followed.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where it is, with or without `/api`.
    pub url: SecretUrl,
    /// A backend token.
    pub token: Secret,
    /// The environment that the token is for.
    pub environment: String,
    /// What Unleash knows this program as.
    pub app_name: String,
    /// How often it is asked.
    pub interval: Duration,
    /// An answer that takes longer is none.
    pub timeout: Duration,
    /// How often what was counted is told.
    pub report: Duration,
    /// Flags that are off when they are missing.
    pub accept_missing: Vec<Flag>,
    /// Answers older than what is in force must insist for so long.
    pub accept_older: Duration,
}

impl Settings {
    /// What the configuration says; the error names the setting that is missing.
    pub fn of(config: &config::Flags) -> Result<Self, String> {
        let accepted = |flag: &Flag| config.accept_missing.contains(&flag.name());
        Ok(Self {
            url: config.url.clone().ok_or("flags.url is not set: where is Unleash?")?,
            token: config.token.clone().ok_or("flags.token is not set: a backend token of Unleash")?,
            environment: config.environment.clone(),
            app_name: config.app_name.clone(),
            interval: config.interval,
            timeout: config.timeout,
            report: config.report,
            accept_missing: Flag::ALL.into_iter().filter(accepted).collect(),
            accept_older: config.accept_older,
        })
    }

    /// The URL that `/api/…` is appended to.
    fn base(&self) -> Result<String, String> {
        let url = Url::parse(self.url.expose()).map_err(|_| "flags.url is no URL")?;
        if !url.username().is_empty() || url.query().is_some() || url.fragment().is_some() {
            return Err("flags.url must hold no user, no ? and no #; the token goes into flags.token".to_owned());
        }
        let base = url.as_str().trim_end_matches('/');
        Ok(base.strip_suffix("/api").unwrap_or(base).to_owned())
    }

    /// For people, and to tell stored copies apart.
    fn source(&self) -> String {
        format!("Unleash at {}, environment {}", self.url, self.environment)
    }

    fn leave(&self) -> Leave {
        Leave { missing: self.accept_missing.clone(), older: self.accept_older }
    }
}

/// Asks once, without following: what Unleash says now, or what is wrong with that.
pub async fn look(settings: &Settings) -> Result<Document, String> {
    let transport = Transport::new(settings)?;
    match ask(&transport, settings, None, None, Duration::ZERO).await {
        Ok(Good::Whole { document, .. }) => Ok(*document),
        asked => Err(why(asked)),
    }
}

/// The tasks that follow one Unleash. Dropping it ends them.
pub(super) struct Following {
    pub(super) counts: Arc<Counts>,
    tasks: TaskTracker,
    stop: CancellationToken,
    _stopped: DropGuard,
}

impl Following {
    /// Asks at once. Without an answer it begins with the stored copy; without one of these, too, not at all.
    pub(super) async fn start(
        settings: Settings,
        state_dir: &Path,
        metrics: FlagMetrics,
    ) -> Result<(Arc<InForce>, Self), FlagsError> {
        let source = settings.source();
        let last_good = LastGood::of_server(state_dir, &source);
        let unusable = |why: String| FlagsError { from: why, last_good: "(not looked for)".to_owned() };
        let transport = Arc::new(Transport::new(&settings).map_err(unusable)?);
        let stored = last_good.clone();
        let stored = in_background(move || stored.load()).await;
        let known = stored.as_ref().ok().map(|(document, _)| document);
        let asked = ask(&transport, &settings, known, None, Duration::ZERO).await;
        metrics.fetches.with_label_values(&[outcome(&asked)]).inc();
        let (in_force, good) = match (asked, stored) {
            (Ok(Good::Whole { document, etag, complaint }), _) => {
                (InForce::new(source, *document, Utc::now(), false), Some((etag, complaint)))
            }
            (asked, Err(last_good)) => return Err(FlagsError { from: format!("{source}: {}", why(asked)), last_good }),
            (asked, Ok((document, good_at))) => {
                let revision = document.revision();
                tracing::warn!(revision, "Unleash can't be used: STARTING WITH THE LAST GOOD FLAGS");
                let in_force = InForce::new(source, document, good_at, true);
                in_force.failed(why(asked));
                (in_force, None)
            }
        };
        let in_force = Arc::new(in_force);
        let mut follower =
            Follower::new(transport.clone(), settings.clone(), in_force.clone(), last_good, metrics.clone());
        match good {
            Some((etag, complaint)) => follower.settle(etag, complaint).await,
            None => follower.failures = 1,
        }
        let counts = Arc::new(Counts::default());
        let reporter = Reporter::new(transport, settings, counts.clone(), metrics);
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        tasks.spawn(follower.run(stop.clone()));
        tasks.spawn(reporter.run(stop.clone()));
        Ok((in_force, Self { counts, tasks, _stopped: stop.clone().drop_guard(), stop }))
    }

    /// Ends them in good order: what was counted is told.
    pub(super) async fn close(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// An answer that can be used.
enum Good {
    Whole { document: Box<Document>, etag: Option<HeaderValue>, complaint: Option<String> },
    Unchanged,
}

/// One that can't.
struct Bad {
    outcome: &'static str,
    why: String,
}

impl From<Failure> for Bad {
    fn from(failure: Failure) -> Self {
        Self { outcome: failure.outcome(), why: format!("Unleash {failure}") }
    }
}

async fn ask(
    transport: &Transport,
    settings: &Settings,
    in_force: Option<&Document>,
    etag: Option<&HeaderValue>,
    older_for: Duration,
) -> Result<Good, Bad> {
    let (text, etag) = match transport.fetch(etag).await? {
        Reply::Unchanged => return Ok(Good::Unchanged),
        Reply::Document { text, etag } => (text, etag),
    };
    let refused = |why: String| Bad { outcome: "refused", why: format!("Unleash {why}") };
    let answer =
        Answer::parse(&text).map_err(|why| refused(format!("answers with a document that can't be used: {why}")))?;
    match judge(&answer, in_force, &settings.leave(), older_for) {
        Verdict::Put(document, complaint) => {
            Ok(Good::Whole { document, etag, complaint: complaint.map(|why| format!("Unleash {why}")) })
        }
        Verdict::Older(why) => Err(Bad { outcome: "older", why: format!("Unleash {why}") }),
        Verdict::Refuse(why) => Err(refused(why)),
    }
}

fn outcome(asked: &Result<Good, Bad>) -> &'static str {
    match asked {
        Ok(Good::Unchanged) => "unchanged",
        Ok(Good::Whole { complaint: None, .. }) => "good",
        Ok(Good::Whole { complaint: Some(_), .. }) => "kept",
        Err(bad) => bad.outcome,
    }
}

/// Why there is nothing to begin with.
fn why(asked: Result<Good, Bad>) -> String {
    asked.err().map_or_else(|| "Unleash answers 304, and was not asked what has changed".to_owned(), |bad| bad.why)
}

/// Asks again and again.
struct Follower {
    transport: Arc<Transport>,
    settings: Settings,
    in_force: Arc<InForce>,
    last_good: LastGood,
    metrics: FlagMetrics,
    /// Of the document in force.
    etag: Option<HeaderValue>,
    /// What is not as Unleash says in the document in force.
    complaint: Option<String>,
    /// The revision of the stored copy, where it is one of this process.
    stored: Option<String>,
    /// When the whole document was last had.
    whole_at: Instant,
    /// When the stored copy's time was noted.
    noted_at: Instant,
    /// Since when answers have been older than what is in force.
    older_since: Option<Instant>,
    failures: u32,
}

impl Follower {
    fn new(
        transport: Arc<Transport>,
        settings: Settings,
        in_force: Arc<InForce>,
        last_good: LastGood,
        metrics: FlagMetrics,
    ) -> Self {
        let now = Instant::now();
        Self {
            transport,
            settings,
            in_force,
            last_good,
            metrics,
            etag: None,
            complaint: None,
            stored: None,
            whole_at: now,
            noted_at: now,
            older_since: None,
            failures: 0,
        }
    }

    async fn run(mut self, stop: CancellationToken) {
        loop {
            let nap = pause(self.settings.interval, self.failures, rand::rng().random_range(0.0..1.0));
            let look = async {
                tokio::time::sleep(nap).await;
                self.look().await;
            };
            if stop.run_until_cancelled(look).await.is_none() {
                return;
            }
        }
    }

    async fn look(&mut self) {
        let etag = self.etag.as_ref().filter(|_| self.whole_at.elapsed() < WHOLE);
        let older_for = self.older_since.map_or(Duration::ZERO, |since| since.elapsed());
        let asked = {
            let document = Arc::clone(&self.in_force.document());
            ask(&self.transport, &self.settings, Some(&document), etag, older_for).await
        };
        self.metrics.fetches.with_label_values(&[outcome(&asked)]).inc();
        match asked {
            Ok(Good::Whole { document, etag, complaint }) => {
                self.put(*document);
                self.settle(etag, complaint).await;
            }
            Ok(Good::Unchanged) => {
                self.in_force.confirmed();
                self.older_since = None;
                self.heard().await;
            }
            // Older answers are heard out at the usual pace.
            Err(Bad { outcome: "older", why }) => {
                self.older_since.get_or_insert_with(Instant::now);
                self.failures = 0;
                self.in_force.failed(why);
            }
            Err(bad) => {
                self.failures = self.failures.saturating_add(1);
                self.in_force.failed(bad.why);
            }
        }
    }

    fn put(&mut self, document: Document) {
        let same = self.in_force.document().revision() == document.revision();
        match same {
            true => self.in_force.confirmed(),
            false => self.in_force.put(document),
        }
    }

    /// Notes what came along with the document that has just come into force.
    async fn settle(&mut self, etag: Option<HeaderValue>, complaint: Option<String>) {
        (self.etag, self.complaint, self.older_since) = (etag, complaint, None);
        self.whole_at = Instant::now();
        self.heard().await;
    }

    /// What follows a good answer. The document is in force first and stored then: a full disk must not delay a rollback.
    async fn heard(&mut self) {
        self.failures = 0;
        let kept = self.keep().await;
        match self.complaint.clone().or(kept.err()) {
            Some(why) => self.in_force.failed(why),
            None => self.in_force.mended(),
        }
    }

    async fn keep(&mut self) -> Result<(), String> {
        let (last_good, document) = (self.last_good.clone(), Arc::clone(&self.in_force.document()));
        if self.stored.as_deref() != Some(document.revision()) {
            self.stored = None;
            in_background(move || last_good.store(&document).map(|()| document.revision().to_owned()))
                .await
                .map(|revision| (self.stored, self.noted_at) = (Some(revision), Instant::now()))
        } else if self.noted_at.elapsed() >= NOTE {
            self.noted_at = Instant::now();
            in_background(move || last_good.confirm()).await.map_err(|error| format!("the stored flags' time: {error}"))
        } else {
            Ok(())
        }
    }
}

/// Reads or writes files where that holds up nobody.
async fn in_background<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}
