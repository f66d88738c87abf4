//! A circuit breaker: after so many failures in a row nobody is let through for a while, then one at a time tries; whoever
//! gets that leave may well give it to somebody who has time, as a router does.
//!
//! Written here rather than taken from a crate: what there is counts a share of failures over a window of time, or wraps
//! the call whole, where a router has to know beforehand that it will not even try. The machine is pure: time and jitter
//! are handed in.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// When a breaker opens, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct BreakerOptions {
    /// So many failures in a row open it.
    pub failures: u32,
    /// Then nobody tries for so long, a quarter more or less.
    pub open: Duration,
}

/// Where a breaker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// Everybody is let through.
    Closed,
    /// One tries; the others are refused.
    HalfOpen,
    /// Everybody is refused.
    Open,
}

/// Shared by everybody who asks the same server.
#[derive(Clone)]
pub struct Breaker {
    machine: Arc<Mutex<Machine>>,
    moved: Arc<dyn Fn(Position) + Send + Sync>,
}

/// Leave to try. Say what came of it; one that is dropped says nothing, and where it was the probe, another may try.
#[must_use = "say what came of the try"]
pub struct Permit {
    breaker: Breaker,
    probe: bool,
    told: bool,
}

impl Breaker {
    /// A closed one; `moved` is told each change of its position.
    pub fn new(options: BreakerOptions, moved: impl Fn(Position) + Send + Sync + 'static) -> Self {
        let machine = Machine { options, state: State::Closed { failed: 0 } };
        Self { machine: Arc::new(Mutex::new(machine)), moved: Arc::new(moved) }
    }

    /// Asks to try. Refused: come back after so long.
    pub fn ask(&self) -> Result<Permit, Duration> {
        let probe = self.with(|machine| machine.ask(Instant::now()))?;
        Ok(Permit { breaker: self.clone(), probe, told: false })
    }

    /// Where it stands.
    pub fn position(&self) -> Position {
        self.with(|machine| machine.position())
    }

    /// Somebody else knows that the server answers.
    pub fn close(&self) {
        self.with(Machine::close);
    }

    fn with<T>(&self, act: impl FnOnce(&mut Machine) -> T) -> T {
        let mut machine = self.machine.lock().unwrap_or_else(PoisonError::into_inner);
        let before = machine.position();
        let answer = act(&mut machine);
        let after = machine.position();
        drop(machine);
        if before != after {
            (self.moved)(after);
        }
        answer
    }
}

impl Permit {
    /// Whether what comes of it decides for everybody.
    pub fn is_probe(&self) -> bool {
        self.probe
    }

    /// The server answered.
    pub fn succeeded(mut self) {
        self.told = true;
        let probe = self.probe;
        self.breaker.with(|machine| machine.succeeded(probe));
    }

    /// It did not.
    pub fn failed(mut self) {
        self.told = true;
        let (probe, jitter) = (self.probe, rand::random::<f64>());
        self.breaker.with(|machine| machine.failed(probe, Instant::now(), jitter));
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.probe && !self.told {
            self.breaker.with(|machine| machine.abandoned(Instant::now()));
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum State {
    Closed { failed: u32 },
    Open { until: Instant },
    HalfOpen,
}

/// See the module.
#[derive(Debug)]
struct Machine {
    options: BreakerOptions,
    state: State,
}

/// Who is refused while one tries comes back after so long.
const PROBING: Duration = Duration::from_millis(100);

impl Machine {
    /// Whether somebody may try, and whether that is the probe.
    fn ask(&mut self, now: Instant) -> Result<bool, Duration> {
        match self.state {
            State::Closed { .. } => Ok(false),
            State::Open { until } if until > now => Err(until - now),
            State::Open { .. } => {
                self.state = State::HalfOpen;
                Ok(true)
            }
            State::HalfOpen => Err(PROBING),
        }
    }

    /// Whoever began before it opened says nothing about now: then only the probe's word counts.
    fn succeeded(&mut self, probe: bool) {
        if probe || matches!(self.state, State::Closed { .. }) {
            self.close();
        }
    }

    fn close(&mut self) {
        self.state = State::Closed { failed: 0 };
    }

    fn failed(&mut self, probe: bool, now: Instant, jitter: f64) {
        match &mut self.state {
            State::Closed { failed } if *failed + 1 < self.options.failures => *failed += 1,
            State::Closed { .. } => self.open(now, jitter),
            State::HalfOpen if probe => self.open(now, jitter),
            State::Open { .. } | State::HalfOpen => {}
        }
    }

    fn abandoned(&mut self, now: Instant) {
        if matches!(self.state, State::HalfOpen) {
            self.state = State::Open { until: now };
        }
    }

    /// Routers that opened together must not come back together.
    fn open(&mut self, now: Instant, jitter: f64) {
        self.state = State::Open { until: now + self.options.open.mul_f64(0.75 + jitter.clamp(0.0, 1.0) / 2.0) };
    }

    fn position(&self) -> Position {
        match self.state {
            State::Closed { .. } => Position::Closed,
            State::HalfOpen => Position::HalfOpen,
            State::Open { .. } => Position::Open,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OPTIONS: BreakerOptions = BreakerOptions { failures: 3, open: Duration::from_millis(100) };

    fn machine() -> Machine {
        Machine { options: OPTIONS, state: State::Closed { failed: 0 } }
    }

    #[test]
    fn it_opens_after_so_many_failures_in_a_row_and_a_success_starts_the_count_again() {
        let (mut machine, now) = (machine(), Instant::now());
        machine.failed(false, now, 0.5);
        machine.failed(false, now, 0.5);
        machine.succeeded(false);
        machine.failed(false, now, 0.5);
        machine.failed(false, now, 0.5);
        assert_eq!(machine.ask(now), Ok(false));
        machine.failed(false, now, 0.5);
        assert_eq!(machine.ask(now), Err(Duration::from_millis(100)));
    }

    #[test]
    fn after_its_time_one_tries_and_the_others_wait_for_what_comes_of_it() {
        let (mut machine, now) = (machine(), Instant::now());
        (0..3).for_each(|_| machine.failed(false, now, 0.5));
        let later = now + Duration::from_millis(100);
        assert_eq!((machine.ask(later), machine.ask(later)), (Ok(true), Err(PROBING)));
        machine.failed(true, later, 0.0);
        assert_eq!(machine.ask(later), Err(Duration::from_millis(75)));
        let again = later + Duration::from_millis(75);
        assert_eq!(machine.ask(again), Ok(true));
        machine.succeeded(true);
        assert_eq!((machine.ask(again), machine.ask(again)), (Ok(false), Ok(false)));
    }

    #[test]
    fn a_probe_that_is_given_up_leaves_the_next_one_free_to_try() {
        let options = BreakerOptions { failures: 1, open: Duration::ZERO };
        let breaker = Breaker::new(options, |_| {});
        breaker.ask().unwrap_or_else(|_| panic!("closed")).failed();
        let probe = breaker.ask().unwrap_or_else(|_| panic!("its time is over"));
        assert!(breaker.ask().is_err());
        drop(probe);
        breaker.ask().unwrap_or_else(|_| panic!("nobody tries")).succeeded();
        assert_eq!(breaker.position(), Position::Closed);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Ask,
        Wait(u64),
        End { which: usize, how: Option<bool> },
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            3 => Just(Step::Ask),
            1 => (0u64..200).prop_map(Step::Wait),
            3 => (any::<usize>(), proptest::option::of(any::<bool>())).prop_map(|(which, how)| Step::End { which, how }),
        ];
        proptest::collection::vec(step, 0..200)
    }

    proptest! {
        /// Whatever happens: never two probes at once, never refused for longer than the longest opening, and never open
        /// after fewer failures than asked for.
        #[test]
        fn it_never_probes_twice_at_once_and_never_stays_shut(steps in steps(), jitter in 0.0f64..=1.0) {
            let (mut machine, mut now) = (machine(), Instant::now());
            let mut out: Vec<bool> = Vec::new();
            let mut failures = 0;
            for step in steps {
                match step {
                    Step::Wait(ms) => now += Duration::from_millis(ms),
                    Step::Ask => match machine.ask(now) {
                        Ok(probe) => {
                            prop_assert!(!probe || !out.contains(&true), "two probes");
                            out.push(probe);
                        }
                        Err(wait) => {
                            prop_assert!(wait <= OPTIONS.open.mul_f64(1.25));
                            prop_assert!(failures >= OPTIONS.failures);
                        }
                    },
                    Step::End { which, how } if !out.is_empty() => {
                        let probe = out.remove(which % out.len());
                        match how {
                            Some(true) => {
                                machine.succeeded(probe);
                                if machine.position() == Position::Closed { failures = 0 }
                            }
                            Some(false) => {
                                machine.failed(probe, now, jitter);
                                failures += 1;
                            }
                            None if probe => machine.abandoned(now),
                            None => {}
                        }
                    }
                    Step::End { .. } => {}
                }
            }
            // Once nobody is out and its time is over, somebody may try.
            out.into_iter().filter(|probe| *probe).for_each(|_| machine.abandoned(now));
            prop_assert!(machine.ask(now + OPTIONS.open * 2).is_ok());
        }
    }
}
