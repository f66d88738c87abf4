//! Tells Unleash how its flags were answered, so that its pages show which are in use. A decision adds to a number and
//! goes on; once an interval the numbers are sent. What Unleash doesn't take stays for the next time, for an hour.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use rand::RngExt;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use unleash_types::client_metrics::{
    ClientApplication, ClientMetrics, MetricBucket, MetricsMetadata, SdkType, ToggleStats,
};

use super::Settings;
use super::judge::pause;
use super::transport::{Failure, SDK, Transport};
use crate::flags::document::Flag;
use crate::metrics::FlagMetrics;

/// Unleash counts by the hour: older numbers would only show in the wrong one.
const LONGEST: TimeDelta = TimeDelta::hours(1);
/// At a shutdown the last numbers get so long.
const LAST: Duration = Duration::from_secs(2);

/// How often each flag was answered no and yes.
#[derive(Debug, Default)]
pub(crate) struct Counts([[AtomicU64; 2]; Flag::ALL.len()]);

impl Counts {
    /// One more answer.
    pub(crate) fn note(&self, flag: Flag, on: bool) {
        self.0[flag as usize][usize::from(on)].fetch_add(1, Ordering::Relaxed);
    }

    fn take(&self) -> Numbers {
        Numbers(self.0.each_ref().map(|pair| pair.each_ref().map(|number| number.swap(0, Ordering::Relaxed))))
    }
}

/// What has been taken and not been told yet.
#[derive(Debug, Default, Clone, Copy)]
struct Numbers([[u64; 2]; Flag::ALL.len()]);

impl Numbers {
    fn add(&mut self, more: Numbers) {
        let (ours, theirs) = (self.0.as_flattened_mut(), more.0.as_flattened());
        ours.iter_mut().zip(theirs).for_each(|(number, more)| *number += more);
    }

    fn total(&self) -> u64 {
        self.0.as_flattened().iter().sum()
    }

    fn toggles(&self) -> HashMap<String, ToggleStats> {
        let bounded = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        let stats = |flag: Flag| {
            let [no, yes] = self.0[flag as usize].map(bounded);
            (flag.name().to_owned(), ToggleStats { no, yes, variants: HashMap::new() })
        };
        Flag::ALL.into_iter().map(stats).filter(|(_, stats)| stats.no > 0 || stats.yes > 0).collect()
    }
}

/// Sends what is counted.
pub(super) struct Reporter {
    transport: Arc<Transport>,
    settings: Settings,
    counts: Arc<Counts>,
    metrics: FlagMetrics,
    since: DateTime<Utc>,
    untold: Numbers,
    registered: bool,
}

impl Reporter {
    pub(super) fn new(
        transport: Arc<Transport>,
        settings: Settings,
        counts: Arc<Counts>,
        metrics: FlagMetrics,
    ) -> Self {
        let (since, untold) = (Utc::now(), Numbers::default());
        Self { transport, settings, counts, metrics, since, untold, registered: false }
    }

    /// Registers this process and sends until `stop`, and then once more.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut failures = 0;
        loop {
            if !self.registered {
                let Some(told) = stop.run_until_cancelled(self.register()).await else { break };
                failures = if told { 0 } else { failures + 1 };
            }
            let wait = if self.registered { self.settings.report } else { self.settings.interval };
            let nap = pause(wait, failures, rand::rng().random_range(0.0..1.0)).min(self.settings.report);
            if stop.run_until_cancelled(tokio::time::sleep(nap)).await.is_none() {
                break;
            }
            if self.registered || Utc::now() - self.since > LONGEST {
                self.report().await;
            }
        }
        // What is not told within this time would be told by nobody.
        if timeout(LAST, self.report()).await.is_err() {
            self.lose();
        }
    }

    async fn register(&mut self) -> bool {
        let application = ClientApplication {
            app_name: self.settings.app_name.clone(),
            environment: Some(self.settings.environment.clone()),
            instance_id: Some(self.transport.instance.clone()),
            connection_id: Some(self.transport.instance.clone()),
            interval: u32::try_from(self.settings.report.as_millis()).unwrap_or(u32::MAX),
            started: self.since,
            strategies: ["default", "userWithId", "flexibleRollout"].map(str::to_owned).into(),
            metadata: metadata(),
            ..ClientApplication::default()
        };
        let told = self.transport.post("/api/client/register", &without_nulls(&application)).await;
        if let Err(error) = &told {
            tracing::debug!("Unleash {error}; this process is registered there later");
        }
        self.registered = told.is_ok();
        self.registered
    }

    async fn report(&mut self) {
        self.untold.add(self.counts.take());
        let now = Utc::now();
        let toggles = self.untold.toggles();
        if toggles.is_empty() {
            self.since = now;
            return;
        }
        let metrics = ClientMetrics {
            app_name: self.settings.app_name.clone(),
            bucket: Some(MetricBucket { start: self.since, stop: now, toggles }),
            environment: Some(self.settings.environment.clone()),
            instance_id: Some(self.transport.instance.clone()),
            connection_id: Some(self.transport.instance.clone()),
            impact_metrics: None,
            metadata: metadata(),
        };
        match self.transport.post("/api/client/metrics", &without_nulls(&metrics)).await {
            Ok(()) => (self.untold, self.since) = (Numbers::default(), now),
            // Told again, they might count twice; a flag that seems in use and isn't is the worse mistake.
            Err(error) if error.in_doubt() || now - self.since > LONGEST => self.give_up(&error),
            Err(error) => tracing::debug!("Unleash {error}; what was counted is told later"),
        }
    }

    fn give_up(&mut self, error: &Failure) {
        tracing::warn!(answers = self.untold.total(), "Unleash {error}; its usage figures lack what was counted here");
        self.lose();
    }

    fn lose(&mut self) {
        self.metrics.counts_lost.inc_by(self.untold.total());
        (self.untold, self.since) = (Numbers::default(), Utc::now());
    }
}

fn metadata() -> MetricsMetadata {
    MetricsMetadata {
        sdk_version: Some(SDK.to_owned()),
        sdk_type: Some(SdkType::Backend),
        yggdrasil_version: None,
        platform_name: None,
        platform_version: None,
    }
}

/// Unleash takes an absent field for none, but not null.
fn without_nulls(message: &impl serde::Serialize) -> serde_json::Value {
    let mut value = serde_json::to_value(message).unwrap_or_default();
    if let Some(fields) = value.as_object_mut() {
        fields.retain(|_, field| !field.is_null());
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_counted_once_and_only_flags_that_were_asked_are_told() {
        let counts = Counts::default();
        counts.note(Flag::Live, true);
        counts.note(Flag::Live, false);
        counts.note(Flag::Live, false);
        let mut untold = counts.take();
        assert_eq!(untold.total(), 3);
        counts.note(Flag::Live, true);
        untold.add(counts.take());
        assert_eq!(counts.take().total(), 0);
        let toggles = untold.toggles();
        assert_eq!(toggles.len(), 1);
        assert_eq!((toggles["crossover-live"].yes, toggles["crossover-live"].no), (2, 2));
    }
}
