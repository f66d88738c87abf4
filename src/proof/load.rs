//! Makes the demo's load: many accounts, three kinds, half of it in series, some accounts far busier than others.

use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};

use super::driver::Job;
use crate::interaction::Payload;

/// The types of work that Nango's customers run.
pub const KINDS: [&str; 3] = ["sync", "action", "webhook"];
/// Every kind of every account has so many series.
const SERIES: usize = 2;

/// What load to make.
#[derive(Debug, Clone)]
pub struct Load<'a> {
    /// The same seed makes the same load.
    pub seed: u64,
    /// Who makes it.
    pub accounts: &'a [Arc<str>],
    /// So much in all.
    pub interactions: usize,
    /// Spread evenly over so long.
    pub over: Duration,
    /// What comes at once on top of the flow, taken from `interactions`.
    pub burst: Burst<'a>,
}

/// Some accounts enqueue a lot in one moment.
#[derive(Debug, Clone)]
pub struct Burst<'a> {
    /// Who.
    pub accounts: &'a [Arc<str>],
    /// So much in all.
    pub interactions: usize,
    /// When, as a share of `over`.
    pub at: f64,
}

impl Load<'_> {
    /// The jobs, in the order of their times.
    pub fn jobs(&self) -> Vec<Job> {
        let mut draws = StdRng::seed_from_u64(self.seed);
        let mut accounts: Vec<_> = self.accounts.iter().collect();
        accounts.shuffle(&mut draws);
        let flow = self.interactions.saturating_sub(self.burst.interactions);
        let mut jobs: Vec<Job> = Vec::with_capacity(self.interactions);
        for n in 0..flow {
            let at = self.over.mul_f64(n as f64 / flow as f64);
            // A power of an even draw: the first of the shuffled are the busy ones.
            let share = draws.random_range(0.0..1.0f64).powf(1.5);
            let account = accounts[(share * accounts.len() as f64) as usize];
            jobs.push(job(&mut draws, at, account));
        }
        for _ in 0..self.burst.interactions {
            let account = self.burst.accounts.choose(&mut draws).unwrap_or(&self.accounts[0]);
            jobs.push(job(&mut draws, self.over.mul_f64(self.burst.at), account));
        }
        jobs.sort_by_key(|job| job.at);
        for (n, job) in jobs.iter_mut().enumerate() {
            job.key = format!("{}-{n:06}", job.kind);
        }
        jobs
    }
}

fn job(draws: &mut StdRng, at: Duration, account: &Arc<str>) -> Job {
    let kind = KINDS[draws.random_range(0..KINDS.len())];
    let series = draws.random_bool(0.5).then(|| format!("{kind}-{}", draws.random_range(0..SERIES)).into());
    let records = draws.random_range(1..500);
    let payload =
        Payload::parse(format!(r#"{{"provider":"crm","records":{records}}}"#)).unwrap_or_else(|_| unreachable!());
    Job { at, account: account.clone(), kind: kind.into(), series, key: String::new(), payload }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_load_of_the_size_asked_for() {
        let accounts: Vec<Arc<str>> = (0..40).map(|n| format!("a{n}").into()).collect();
        let burst = Burst { accounts: &accounts[..2], interactions: 50, at: 0.5 };
        let load = Load { seed: 3, accounts: &accounts, interactions: 1_000, over: Duration::from_secs(10), burst };
        let (one, two) = (load.jobs(), load.jobs());
        assert!(one.iter().zip(&two).all(|(a, b)| (&a.key, &a.account, a.at) == (&b.key, &b.account, b.at)));
        assert_eq!((one.len(), one.iter().map(|job| &job.key).collect::<HashSet<_>>().len()), (1_000, 1_000));
        let in_series = one.iter().filter(|job| job.series.is_some()).count();
        assert!((450..550).contains(&in_series), "{in_series}");
        let at_once = one.iter().filter(|job| job.at == Duration::from_secs(5)).count();
        assert!(at_once >= 50, "{at_once}");
        assert_eq!(one.iter().map(|job| &job.account).collect::<HashSet<_>>().len(), 40);
    }
}
