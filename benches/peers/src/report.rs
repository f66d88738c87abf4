//! What was measured, in the keys of `crossover bench --json`.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use crate::ground::Cost;

/// What one peer did in one round.
#[derive(Debug, Clone, Serialize)]
pub struct Round {
    pub who: &'static str,
    /// So many waited at the begin, or had finished before it, where that is what rounds differ in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished: Option<u32>,
    /// So many tasks were put in or ended within what `per_second` is about, as the database says.
    pub tasks: u32,
    /// So many handlers began on a task that had begun before.
    pub ran_again: u32,
    /// Tasks in a second.
    pub per_second: f64,
    /// Milliseconds, where single calls are measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p50_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p99_ms: Option<f64>,
    /// For each task: bytes of the write-ahead log and commits.
    pub wal_bytes: f64,
    pub commits: f64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub minutes: Vec<Minute>,
}

/// One minute of a round that lasts.
#[derive(Debug, Clone, Serialize)]
pub struct Minute {
    /// Tasks whose handler began in it, in a second.
    pub per_second: f64,
    /// From the call that put a task in to the begin of its handler.
    pub p50_ms: Option<f64>,
    pub p99_ms: Option<f64>,
    /// Processor time of the server, where it is of this process: seconds in a second.
    pub server_cores: Option<f64>,
}

/// One peer.
#[derive(Debug, Serialize)]
pub struct Measured {
    pub who: &'static str,
    pub version: &'static str,
    pub settings: Value,
    pub history: &'static str,
    /// Medians of the rounds, of the heavier ones where they differ.
    pub per_second: f64,
    pub p50_ms: Option<f64>,
    pub p99_ms: Option<f64>,
    /// `per_second` of the heavier rounds over that of the lighter ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
    pub rounds: Vec<Round>,
}

#[derive(Debug, Serialize)]
pub struct Report {
    pub work: String,
    pub tasks: u32,
    /// Of the peer that did most in a second, who it is.
    pub per_second: f64,
    pub best: &'static str,
    pub server: Value,
    pub peers: Vec<Measured>,
}

impl Round {
    pub fn of(who: &'static str, tasks: u32, took: Duration, cost: Cost) -> Self {
        let (wal_bytes, commits) = cost.each(tasks);
        let per_second = f64::from(tasks) / took.as_secs_f64();
        let (p50_ms, p99_ms, waiting, finished) = (None, None, None, None);
        Self {
            who,
            waiting,
            finished,
            tasks,
            ran_again: 0,
            per_second,
            p50_ms,
            p99_ms,
            wal_bytes,
            commits,
            minutes: vec![],
        }
    }

    pub fn timed(self, mut times: Vec<Duration>) -> Self {
        times.sort();
        Self { p50_ms: at(&times, 0.5), p99_ms: at(&times, 0.99), ..self }
    }
}

/// Milliseconds below which this share of the sorted times is.
pub fn at(times: &[Duration], share: f64) -> Option<f64> {
    let place = ((times.len() as f64 * share).ceil() as usize).clamp(1, times.len().max(1)) - 1;
    times.get(place).map(|time| time.as_secs_f64() * 1_000.0)
}

impl Measured {
    /// Of rounds that come in pairs, a lighter and a heavier one, or one by one.
    pub fn of(peer: crate::queue::Peer, settings: Value, rounds: Vec<Round>, paired: bool) -> Self {
        let heavy: Vec<&Round> = rounds.iter().skip(usize::from(paired)).step_by(1 + usize::from(paired)).collect();
        let light: Vec<&Round> = rounds.iter().step_by(2).filter(|_| paired).collect();
        let rate = |rounds: &[&Round]| median(rounds.iter().map(|round| round.per_second).collect());
        let per_second = rate(&heavy).unwrap_or(0.0);
        let (p50_ms, p99_ms) = (
            median(heavy.iter().filter_map(|round| round.p50_ms).collect()),
            median(heavy.iter().filter_map(|round| round.p99_ms).collect()),
        );
        let ratio = rate(&light).map(|light| per_second / light);
        let (who, version, history) = (peer.name(), peer.version(), peer.history());
        Self { who, version, settings, history, per_second, p50_ms, p99_ms, ratio, rounds }
    }
}

impl Report {
    pub fn print(&self) {
        println!(
            "{:<16} {:>10} {:>10} {:>10} {:>10} {:>9} {:>8}",
            "", "", "tasks/s", "p50 ms", "p99 ms", "WAL/task", "commits"
        );
        for round in self.peers.iter().flat_map(|peer| &peer.rounds) {
            let of = match (round.waiting, round.finished) {
                (Some(waiting), _) => format!("of {waiting}"),
                (_, Some(finished)) => format!("+ {finished}"),
                _ => String::new(),
            };
            let (p50, p99) = (ms(round.p50_ms), ms(round.p99_ms));
            let (rate, wal, commits) = (round.per_second, round.wal_bytes, round.commits);
            println!("{:<16} {of:>10} {rate:>10.0} {p50:>10} {p99:>10} {wal:>9.0} {commits:>8.4}", round.who);
            for (n, minute) in round.minutes.iter().enumerate() {
                let (p50, p99) = (ms(minute.p50_ms), ms(minute.p99_ms));
                let cores =
                    minute.server_cores.map_or_else(String::new, |cores| format!("{cores:.2} cores of the server"));
                println!(
                    "{:<16} {:>10} {:>10.0} {p50:>10} {p99:>10} {cores}",
                    "",
                    format!("minute {}", n + 1),
                    minute.per_second
                );
            }
        }
        for peer in &self.peers {
            println!(
                "\n{} {}: {:.0} a second (median); history: {}",
                peer.who, peer.version, peer.per_second, peer.history
            );
            println!("  {}", peer.settings);
        }
    }
}

fn ms(ms: Option<f64>) -> String {
    ms.map_or_else(String::new, |ms| format!("{ms:.2}"))
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        _ if values.is_empty() => None,
        0 => Some((values[middle - 1] + values[middle]) / 2.0),
        _ => Some(values[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_the_middle_or_between_the_two_middles() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(Vec::new()), None);
    }

    #[test]
    fn percentiles_are_times_that_were_measured() {
        let times: Vec<Duration> = (1..=100).map(Duration::from_millis).collect();
        assert_eq!((at(&times, 0.5), at(&times, 0.99), at(&[], 0.5)), (Some(50.0), Some(99.0), None));
    }
}
