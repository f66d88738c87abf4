//! What this process knows of whether Temporal answers.
//!
//! One delivery without an answer opens the circuit: from then on nobody waits for Temporal, and one probe at a time asks
//! it, at once and then with growing pauses. So a single copy in trouble keeps the others back for the milliseconds of one
//! probe, and an outage costs a caller at most one `temporal.start_timeout`, and only callers who came within the first.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use rand::RngExt;
use tokio::sync::watch;
use tracing::{info, warn};
use uuid::Uuid;

use super::deliver::Deliver;
use crate::interaction::Side;
use crate::metrics::Metrics;
use crate::observer::{NO_ANSWER, Observer};

/// See the module.
pub struct Circuit {
    open: watch::Sender<Option<Open>>,
    /// When an outage was over last.
    back_at: Mutex<Option<Instant>>,
    metrics: Arc<Metrics>,
}

/// Nobody waits for Temporal.
#[derive(Clone, Copy)]
struct Open {
    since: Instant,
    /// A probe got no answer either: it is an outage, and not one copy in trouble.
    confirmed: bool,
}

impl Circuit {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self { open: watch::channel(None).0, back_at: Mutex::default(), metrics }
    }

    /// Temporal is not to be waited for.
    pub(crate) fn is_open(&self) -> bool {
        self.open.borrow().is_some()
    }

    /// Returns once Temporal may be asked.
    pub(super) async fn closed(&self) {
        // The sender is ours, so the channel lives as long as this.
        let _ = self.open.subscribe().wait_for(Option::is_none).await;
    }

    /// For how long Temporal has been back; none: this process knows of no outage.
    pub(crate) fn back_for(&self) -> Option<Duration> {
        if self.open.borrow().is_some_and(|open| open.confirmed) {
            return Some(Duration::ZERO);
        }
        self.back_at.lock().unwrap_or_else(PoisonError::into_inner).map(|at| at.elapsed())
    }

    /// Something got no answer. Since when the circuit is open where this opened it: then a probe is due.
    fn open(&self) -> Option<Instant> {
        let since = Instant::now();
        let opened = self.open.send_if_modified(|open| {
            let opens = open.is_none();
            open.get_or_insert(Open { since, confirmed: false });
            opens
        });
        opened.then_some(since)
    }

    /// Temporal answered, to whomever.
    pub(super) fn answered(&self) {
        if !self.is_open() {
            return;
        }
        let mut was = None;
        self.open.send_if_modified(|open| {
            was = open.take();
            was.is_some()
        });
        let Some(Open { since, confirmed: true }) = was else { return };
        *self.back_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        self.metrics.relay.temporal_away.set(0);
        info!(away_for = ?since.elapsed(), "Temporal answers again; the relay delivers what waits");
    }

    /// A probe failed as well.
    fn confirm(&self, error: &dyn std::fmt::Display) {
        let mut first = false;
        self.open.send_if_modified(|open| {
            first = open.as_mut().is_some_and(|open| !std::mem::replace(&mut open.confirmed, true));
            false
        });
        if first {
            self.metrics.relay.temporal_away.set(1);
            warn!(%error, "Temporal does not answer: what it owns is accepted with 202 and waits in the outbox, and the way back from live is closed meanwhile");
        }
    }

    /// Whether it is still open as it was opened then.
    fn is_open_since(&self, since: Instant) -> bool {
        self.open.borrow().is_some_and(|open| open.since == since)
    }
}

/// Opens the circuit, and probes until Temporal answers or nobody delivers any more.
pub(super) fn suspect(circuit: &Arc<Circuit>, target: &Arc<dyn Deliver>, observer: &Observer) {
    if let Some(since) = circuit.open() {
        tokio::spawn(probe(Arc::downgrade(circuit), since, target.clone(), observer.clone()));
    }
}

async fn probe(circuit: Weak<Circuit>, since: Instant, target: Arc<dyn Deliver>, observer: Observer) {
    for tries in 0.. {
        // One that was closed and opened again meanwhile has another probe.
        if circuit.upgrade().is_none_or(|circuit| !circuit.is_open_since(since)) {
            return;
        }
        // An answer to any question will do; that nobody knows this id is one.
        let asked = target.look_up(Uuid::nil()).await;
        let Some(circuit) = circuit.upgrade() else { return };
        match asked {
            Ok(_) => return circuit.answered(),
            Err(error) => {
                observer.disturbed(Side::Temporal, NO_ANSWER);
                circuit.confirm(&error);
            }
        }
        drop(circuit);
        let nap = pause(tries, rand::rng().random_range(0.0..1.0));
        tokio::time::sleep(nap).await;
    }
}

/// The longest pause between two probes, but for a fifth: so soon it is noticed that Temporal is back.
const LONGEST: Duration = Duration::from_secs(5);

/// The pause after so many probes before: it doubles from a quarter of a second, and `at` (0 to 1) moves it by up to a
/// fifth either way, so that the processes of a fleet do not come at once.
fn pause(tries: u32, at: f64) -> Duration {
    jittered(Duration::from_millis(250 << tries.min(8)).min(LONGEST), at)
}

/// A wait moved by up to a fifth either way, by `at` (0 to 1).
pub(super) fn jittered(wait: Duration, at: f64) -> Duration {
    wait.mul_f64(0.8 + 0.4 * at)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

    use async_trait::async_trait;

    use super::*;
    use crate::interaction::Envelope;
    use crate::router::{Delivery, DeliveryError};

    #[derive(Default)]
    struct Target {
        answers: AtomicBool,
        probes: AtomicUsize,
    }

    #[async_trait]
    impl Deliver for Target {
        async fn deliver(&self, _: &Envelope) -> Result<Delivery, DeliveryError> {
            unreachable!("a probe delivers nothing")
        }

        async fn resolve(&self, _: &crate::ledger::Untold) -> Result<bool, DeliveryError> {
            Ok(true)
        }

        async fn look_up(&self, _: Uuid) -> Result<Option<&'static str>, DeliveryError> {
            self.probes.fetch_add(1, SeqCst);
            match self.answers.load(SeqCst) {
                true => Ok(None),
                false => Err(DeliveryError::InDoubt("no answer".to_owned())),
            }
        }
    }

    fn circuit() -> (Arc<Circuit>, Arc<Target>, Arc<Metrics>) {
        let metrics = Arc::new(Metrics::new().unwrap());
        (Arc::new(Circuit::new(metrics.clone())), Arc::default(), metrics)
    }

    fn suspect(circuit: &Arc<Circuit>, target: &Arc<Target>) {
        super::suspect(circuit, &(target.clone() as Arc<dyn Deliver>), &Observer::none());
    }

    #[tokio::test(start_paused = true)]
    async fn one_delivery_in_trouble_is_no_outage_where_temporal_answers_the_probe() {
        let (circuit, target, metrics) = circuit();
        target.answers.store(true, SeqCst);
        suspect(&circuit, &target);
        assert!(circuit.is_open());
        circuit.closed().await;
        assert_eq!((target.probes.load(SeqCst), metrics.relay.temporal_away.get(), circuit.back_for()), (1, 0, None));
    }

    #[tokio::test(start_paused = true)]
    async fn while_temporal_is_away_one_probe_asks_however_many_fail_and_its_answer_is_noticed_within_six_seconds() {
        let (circuit, target, metrics) = circuit();
        for _ in 0..100 {
            suspect(&circuit, &target);
        }
        tokio::time::sleep(Duration::from_secs(60)).await;
        let probes = target.probes.load(SeqCst);
        assert!((12..=25).contains(&probes), "{probes} probes in a minute");
        assert_eq!((metrics.relay.temporal_away.get(), circuit.back_for()), (1, Some(Duration::ZERO)));
        target.answers.store(true, SeqCst);
        let back = tokio::time::Instant::now();
        circuit.closed().await;
        assert!(back.elapsed() <= LONGEST.mul_f64(1.2), "{:?}", back.elapsed());
        assert_eq!(metrics.relay.temporal_away.get(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_to_anybody_closes_it_and_nothing_probes_without_deliveries() {
        let (circuit, target, _) = circuit();
        suspect(&circuit, &target);
        tokio::time::sleep(Duration::from_secs(1)).await;
        circuit.answered();
        assert!(!circuit.is_open() && circuit.back_for().is_some());
        suspect(&circuit, &target);
        drop(circuit);
        tokio::time::sleep(Duration::from_secs(10)).await;
        let probes = target.probes.load(SeqCst);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(target.probes.load(SeqCst), probes);
    }

    #[test]
    fn pauses_double_up_to_five_seconds_and_never_leave_their_jitter() {
        let at_rest: Vec<_> = (0..7).map(|n| pause(n, 0.5).as_millis()).collect();
        assert_eq!(at_rest, [250, 500, 1_000, 2_000, 4_000, 5_000, 5_000]);
        assert_eq!((pause(0, 0.0).as_millis(), pause(u32::MAX, 1.0).as_millis()), (200, 6_000));
    }
}
