//! From where claims of tasks go on. While some transaction is held open anywhere on the server, nobody may clean up what was claimed and
//! ended since: it lies dead at the head of what is ready, and each claim from there reads all of it. So a worker whose claims
//! from the head take long goes on from where it came to, rank by rank, and looks from the head for a twentieth of its time. What comes to
//! stand before that (retries, what falls due, releases, ranks not seen yet, tasks of routers that are behind) is found by those looks, at most
//! twenty times as late as one takes, and five seconds at most. Where claims from the head are quick, as they mostly are, all are from there.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::tasks::Place;

/// A claim from the head may take so long, without anybody asking why, and so much longer for each that it found.
const QUICK: Duration = Duration::from_millis(5);
const EACH: Duration = Duration::from_micros(40);
/// What goes beyond is this part of a worker's time.
const PART: u32 = 20;
/// But one comes after so long at the latest.
const LONGEST: Duration = Duration::from_secs(5);
/// Routers know virtual time by so much later, and what they put in is seen by so much later again.
const MARGIN: Duration = Duration::from_millis(1_500);
/// Ranks that are kept in mind; more are found from the head.
const RANKS: usize = 32;

/// How far one worker's claims have come.
#[derive(Debug, Default)]
pub(super) struct Reach {
    ranks: BTreeMap<i16, Come>,
    /// No claim from the head before this.
    head_at: Option<Instant>,
    /// What the last claim from the head took beyond what is usual.
    beyond: Duration,
}

/// In one rank.
#[derive(Debug)]
struct Come {
    /// Claims go on from here: claims had come so far a margin ago.
    from: i64,
    /// At the mark.
    marked: i64,
    marked_at: Instant,
    /// By now.
    to: i64,
    found_at: Instant,
}

impl Reach {
    /// The places from which the next claim goes on, first ranks first; none: it is one from the head.
    pub fn from(&self, now: Instant) -> Option<Vec<(i16, i64)>> {
        self.head_at.filter(|at| now < *at && !self.ranks.is_empty())?;
        Some(self.ranks.iter().map(|(rank, come)| (*rank, come.from)).collect())
    }

    /// A claim found these, from the head or not. Those of groups with limits have virtual times of their own and say nothing.
    pub fn found(&mut self, places: impl Iterator<Item = Place>, from_head: bool, now: Instant) {
        let mut found: BTreeMap<i16, (i64, i64)> = BTreeMap::new();
        for Place { rank, vt } in places.filter(|place| !place.of_a_group()) {
            let (first, last) = found.entry(rank).or_insert((vt, vt));
            (*first, *last) = ((*first).min(vt), (*last).max(vt));
        }
        for (rank, (first, last)) in found {
            if self.ranks.len() >= RANKS && !self.ranks.contains_key(&rank) {
                let oldest = self.ranks.iter().min_by_key(|(_, come)| come.found_at).map(|(rank, _)| *rank);
                oldest.map(|oldest| self.ranks.remove(&oldest));
            }
            match self.ranks.get_mut(&rank) {
                // There is more of it, perhaps: retries, or what came of a router that is behind.
                Some(come) if from_head && first < come.from => *come = Come::at(first, last, now),
                Some(come) => (come.to, come.found_at) = (come.to.max(last), now),
                // Nothing of it is known to lie behind.
                None => drop(self.ranks.insert(rank, Come::at(i64::MIN, last, now))),
            }
        }
        for come in self.ranks.values_mut().filter(|come| now.duration_since(come.marked_at) >= MARGIN) {
            (come.from, come.marked, come.marked_at) = (come.marked, come.to, now);
        }
    }

    /// A claim from the head took so long for so many. One alone may have waited for a connection, or for a disk.
    pub fn looked(&mut self, took: Duration, found: usize, now: Instant) {
        let usual = QUICK + EACH * u32::try_from(found).unwrap_or(u32::MAX);
        let before = std::mem::replace(&mut self.beyond, took.saturating_sub(usual));
        let pause = (self.beyond.min(before) * PART).min(LONGEST);
        self.head_at = (!pause.is_zero()).then(|| now + pause);
    }
}

impl Come {
    fn at(from: i64, to: i64, now: Instant) -> Self {
        Self { from, marked: from, marked_at: now, to, found_at: now }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(rank: i16, vt: i64) -> Place {
        Place { rank, vt }
    }

    #[test]
    fn all_claims_are_from_the_head_while_those_are_quick() {
        let (mut reach, now) = (Reach::default(), Instant::now());
        assert_eq!(reach.from(now), None);
        reach.found([place(0, 8)].into_iter(), false, now);
        reach.looked(QUICK / 2, 1, now);
        assert_eq!(reach.from(now), None);
        reach.looked(QUICK + EACH * 400, 500, now);
        assert_eq!(reach.from(now), None);
    }

    #[test]
    fn looks_from_the_head_that_take_long_take_a_twentieth_of_the_time() {
        let (mut reach, now) = (Reach::default(), Instant::now());
        let slow = QUICK + Duration::from_millis(50);
        reach.looked(slow, 0, now);
        assert_eq!(reach.from(now), None, "one may have waited for a connection");
        reach.looked(slow * 9, 0, now);
        assert_eq!(reach.from(now), None, "nothing is known to go on from");
        reach.found([place(0, 2)].into_iter(), true, now);
        assert!(reach.from(now + Duration::from_millis(999)).is_some());
        assert_eq!(reach.from(now + Duration::from_millis(1_000)), None);
        reach.looked(Duration::from_secs(9), 0, now);
        reach.looked(Duration::from_secs(9), 0, now);
        assert!(reach.from(now + LONGEST / 2).is_some() && reach.from(now + LONGEST).is_none());
    }

    #[test]
    fn a_claim_goes_on_in_each_rank_from_where_claims_had_come_a_margin_ago() {
        let (mut reach, began) = (Reach::default(), Instant::now());
        let slow = |reach: &mut Reach, now| (0..2).for_each(|_| reach.looked(Duration::from_secs(10), 2, now));
        slow(&mut reach, began);
        reach.found([place(0, 10), place(-5, 4)].into_iter(), false, began);
        assert_eq!(
            reach.from(began),
            Some(vec![(-5, i64::MIN), (0, i64::MIN)]),
            "the first one is not known to be the first"
        );
        let first = began + MARGIN;
        reach.found([place(0, 20)].into_iter(), false, first);
        assert_eq!(reach.from(first), Some(vec![(-5, i64::MIN), (0, i64::MIN)]), "one may be on its way yet");
        let second = first + MARGIN;
        reach.found([place(0, 30), place(0, 6)].into_iter(), false, second);
        assert_eq!(reach.from(second), Some(vec![(-5, 4), (0, 20)]));
        let third = second + MARGIN;
        reach.found([].into_iter(), false, third);
        assert_eq!(reach.from(third), Some(vec![(-5, 4), (0, 30)]));
    }

    #[test]
    fn what_the_head_has_before_the_place_is_gone_on_from_and_what_groups_have_says_nothing() {
        let (mut reach, mut now) = (Reach::default(), Instant::now());
        for _ in 0..3 {
            (0..2).for_each(|_| reach.looked(Duration::from_secs(60), 1, now));
            reach.found([place(0, 100), place(0, 7_001)].into_iter(), true, now);
            now += MARGIN;
        }
        assert_eq!(reach.from(now), Some(vec![(0, 100)]));
        reach.found([place(0, 40)].into_iter(), false, now);
        assert_eq!(reach.from(now), Some(vec![(0, 100)]), "a claim from a place on says nothing of what is before it");
        reach.found([place(0, 40), place(0, 60)].into_iter(), true, now);
        assert_eq!(reach.from(now), Some(vec![(0, 40)]));
        reach.found([].into_iter(), false, now + MARGIN * 2);
        reach.found([].into_iter(), false, now + MARGIN * 4);
        assert_eq!(reach.from(now), Some(vec![(0, 60)]));
    }

    #[test]
    fn ranks_are_bounded_to_those_that_were_found_last() {
        let (mut reach, now) = (Reach::default(), Instant::now());
        reach.found([place(7, 2)].into_iter(), true, now);
        reach.found((10..10 + RANKS as i16).map(|rank| place(rank, 2)), true, now + Duration::from_secs(1));
        (0..2).for_each(|_| reach.looked(Duration::from_secs(1), 200, now));
        let from = reach.from(now).unwrap();
        assert!(from.len() == RANKS && from[0].0 == 10, "the one that was found longest ago is forgotten: {from:?}");
    }
}
