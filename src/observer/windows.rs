//! What lasts a while: a side that can't work, and sightings that find no room. Each is a window that is open for as long
//! as it is noted again, and reaches the database with the next beat.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};

use crate::interaction::Side;

/// What is not noted again for so long is over.
pub(super) const OVER_AFTER: Duration = Duration::from_secs(3);

/// From when to when something was noted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    pub began: Instant,
    pub last: Instant,
    /// How much of it there was.
    pub count: u64,
    /// Its beginning by the database's clock, once it has been written.
    pub began_at: Option<DateTime<Utc>>,
}

/// A side, and what kept it from its work.
pub(super) type Trouble = (Side, &'static str);

/// The windows that are open, or over and not written yet.
#[derive(Default)]
pub(super) struct Windows {
    inner: Mutex<Inner>,
}

/// Few: one for each kind of trouble, and one for what was dropped.
#[derive(Default)]
struct Inner {
    disturbed: HashMap<Trouble, Window>,
    dropped: Option<Window>,
}

impl Window {
    fn new(now: Instant) -> Self {
        Self { began: now, last: now, count: 0, began_at: None }
    }

    fn note(&mut self, now: Instant, count: u64) {
        // One that is over and written is another's past. One that is not written yet goes on: too long is safe.
        if self.began_at.is_some() && now.duration_since(self.last) > OVER_AFTER {
            *self = Self::new(now);
        }
        self.last = now;
        self.count += count;
    }

    /// After it was written: what is left of it.
    fn written(self, as_of: Self, began_at: DateTime<Utc>, now: Instant) -> Option<Self> {
        if self.began != as_of.began {
            return Some(self);
        }
        let over = self.last == as_of.last && now.duration_since(self.last) > OVER_AFTER;
        (!over).then_some(Self { began_at: Some(began_at), ..self })
    }
}

impl Windows {
    pub fn disturbed(&self, side: Side, what: &'static str) {
        let now = Instant::now();
        self.lock().disturbed.entry((side, what)).or_insert(Window::new(now)).note(now, 1);
    }

    pub fn dropped(&self, sightings: u64) {
        let now = Instant::now();
        self.lock().dropped.get_or_insert(Window::new(now)).note(now, sightings);
    }

    /// Disturbances that go on, or are over and not written yet.
    pub fn troubles(&self) -> Vec<(Trouble, Window)> {
        self.lock().disturbed.iter().map(|(trouble, window)| (*trouble, *window)).collect()
    }

    /// When sightings were dropped last.
    pub fn loss(&self) -> Option<Window> {
        self.lock().dropped
    }

    /// `window` of `trouble` is in the database, where it began at `began_at`.
    pub fn trouble_written(&self, trouble: Trouble, window: Window, began_at: DateTime<Utc>) {
        let mut inner = self.lock();
        if let Some(now) = inner.disturbed.remove(&trouble).and_then(|w| w.written(window, began_at, Instant::now())) {
            inner.disturbed.insert(trouble, now);
        }
    }

    /// The same for what was dropped.
    pub fn loss_written(&self, window: Window, began_at: DateTime<Utc>) {
        let mut inner = self.lock();
        inner.dropped = inner.dropped.and_then(|w| w.written(window, began_at, Instant::now()));
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_again_and_again_is_one_window() {
        let windows = Windows::default();
        (0..5).for_each(|_| windows.disturbed(Side::Temporal, "away"));
        windows.disturbed(Side::Postgres, "away");
        let mut counts: Vec<u64> = windows.troubles().iter().map(|(_, w)| w.count).collect();
        counts.sort();
        assert_eq!(counts, [1, 5]);
    }

    #[test]
    fn a_window_that_was_written_is_kept_until_it_is_over() {
        let (now, at) = (Instant::now(), Utc::now());
        let window = Window::new(now);
        assert_eq!(window.written(window, at, now).unwrap().began_at, Some(at));
        assert_eq!(window.written(window, at, now + OVER_AFTER * 2), None);
        let longer = Window { last: now + OVER_AFTER, ..window };
        assert!(longer.written(window, at, now + OVER_AFTER * 3).is_some(), "the rest is not written yet");
    }

    #[test]
    fn trouble_after_a_window_was_over_opens_another() {
        let now = Instant::now();
        let mut window = Window { began_at: Some(Utc::now()), ..Window::new(now) };
        window.note(now + OVER_AFTER * 2, 3);
        assert_eq!((window.began, window.count, window.began_at), (now + OVER_AFTER * 2, 3, None));
    }
}
