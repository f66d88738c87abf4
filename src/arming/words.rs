//! What an account on its way waits for, and on whom, in words.

use std::time::Duration;

use super::armed::State;
use super::storage::{Waiting, WaitsOn};

/// A process that has not reported for so long is silent.
const SILENT: f64 = 5.0;
/// More processes than so many are counted, not named.
const NAMED: usize = 5;

impl Waiting {
    /// What it waits for, and on whom.
    pub fn waits_for(&self) -> String {
        let waits = match self.state {
            State::Open => "nothing: the first pin in shadow begins its way".to_owned(),
            State::Armed => "nothing".to_owned(),
            State::Pinning => format!("until every process pins its work; {}", self.missing()),
            State::Window => self.window(),
            State::Closing => {
                format!("until nothing that was started without a pin is left with any process; {}", self.missing())
            }
            State::Reconciling => match self.left_to_reconcile {
                Some(left) if left > 0 => format!("until {left} open workflows without a pin have theirs"),
                _ => "until what is open on Temporal without a pin is found and has its pin".to_owned(),
            },
            State::Disarming => self.way_back(),
        };
        match &self.trouble {
            Some(trouble) => format!("{waits}. The last step failed: {trouble}"),
            None => waits,
        }
    }

    fn window(&self) -> String {
        let over = self.window_seconds.filter(|left| *left > 0.0);
        match (over, self.wanted) {
            (Some(left), true) => {
                format!("for {} more, until every key that a caller may repeat has a pin", lasts(left))
            }
            (Some(left), false) => {
                format!(
                    "for {} more, until every key that a caller may repeat has a pin, and then until it is wanted live",
                    lasts(left)
                )
            }
            (None, true) => "for its next step".to_owned(),
            (None, false) => "until it is wanted live: by its flags, or ahead by `crossover arm`".to_owned(),
        }
    }

    fn way_back(&self) -> String {
        match (self.postgres_owns, self.window_seconds) {
            (Some(owned), _) if owned > 0 => {
                format!("until {owned} interactions that Postgres owns have ended, and a whole window after that")
            }
            (_, Some(left)) if left > 0.0 => {
                format!("for {} more, until no key that Postgres has run may be repeated", lasts(left))
            }
            (_, None) => "for its next step".to_owned(),
            _ if self.routers.is_empty() => "for its next step".to_owned(),
            _ => self.missing(),
        }
    }

    fn missing(&self) -> String {
        let named: Vec<_> = self.routers.iter().take(NAMED).map(WaitsOn::line).collect();
        match self.routers.len() {
            0 => "all have acknowledged".to_owned(),
            n if n > NAMED => format!("missing: {}, and {} more", named.join("; "), n - NAMED),
            _ => format!("missing: {}", named.join("; ")),
        }
    }
}

impl WaitsOn {
    fn line(&self) -> String {
        let mut why = Vec::new();
        if self.silent_seconds > SILENT {
            why.push(format!("silent for {}", lasts(self.silent_seconds)));
        }
        if self.in_doubt > 0 {
            why.push(format!("{} starts without a pin in doubt", self.in_doubt));
        }
        if self.spooled > 0 {
            why.push(format!("{} starts not written to Postgres yet", self.spooled));
        }
        why.extend(self.trouble.clone());
        match why.is_empty() {
            true => self.name.clone(),
            false => format!("{} ({})", self.name, why.join(", ")),
        }
    }
}

/// A duration to whole seconds.
pub fn lasts(seconds: f64) -> String {
    humantime::format_duration(Duration::from_secs(seconds.max(0.0).ceil() as u64)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(state: State) -> Waiting {
        Waiting {
            account: "a".into(),
            state,
            generation: 1,
            since: chrono::DateTime::UNIX_EPOCH,
            for_seconds: 60.0,
            unpinned: true,
            wanted: true,
            asked_by: None,
            window_seconds: None,
            postgres_owns: None,
            left_to_reconcile: None,
            trouble: None,
            routers: Vec::new(),
        }
    }

    #[test]
    fn a_barrier_names_who_is_missing_and_why() {
        let on = WaitsOn {
            id: uuid::Uuid::nil(),
            name: "box 7".into(),
            silent_seconds: 61.2,
            in_doubt: 2,
            spooled: 0,
            trouble: None,
        };
        let said = Waiting { routers: vec![on], ..waiting(State::Closing) }.waits_for();
        assert!(said.contains("box 7 (silent for 1m 2s, 2 starts without a pin in doubt)"), "{said}");
    }

    #[test]
    fn a_window_says_what_is_left_of_it_and_whether_anybody_wants_more() {
        let window = |left, wanted| Waiting { window_seconds: left, wanted, ..waiting(State::Window) }.waits_for();
        assert!(window(Some(3_600.0), true).contains("for 1h more"));
        assert!(window(Some(3_600.0), false).contains("wanted live"));
        assert!(window(Some(0.0), false).contains("`crossover arm`"));
    }

    #[test]
    fn the_way_back_waits_for_what_postgres_owns_first() {
        let back = |owned, left| {
            Waiting { postgres_owns: Some(owned), window_seconds: left, ..waiting(State::Disarming) }.waits_for()
        };
        assert!(back(3, None).contains("3 interactions"));
        assert!(back(0, Some(10.0)).contains("10s more"));
    }
}
