//! Asks Unleash's own engine (the one inside `unleash-api-client`) and derives the stage from its answers.
//!
//! The engine is used without the client around it, for three reasons: the client takes a mutex for every question,
//! counts every answer, and only logs when a flag can't be compiled, which then is off for everybody.

use std::borrow::Cow;
use std::collections::HashMap;

use unleash_yggdrasil::state::{EnrichedContext, PropertiesCow, PropertiesRef};
use unleash_yggdrasil::{EngineState, UpdateMessage};

use super::document::{Fault, Flag};
use crate::interaction::Stage;

/// One document, compiled. It never changes: another document is another evaluator.
pub(super) struct Evaluator(EngineState);

impl Evaluator {
    /// Compiles a document that the schema has passed. What the engine still can't take is a fault, never a flag
    /// that is quietly off.
    pub(super) fn compile(text: &str) -> Result<Self, Vec<Fault>> {
        let message = serde_json::from_str::<UpdateMessage>(text).map_err(|error| vec![Fault::new("", error)])?;
        let engine = EngineState::default();
        let warnings = engine.take_state(message).unwrap_or_default();
        let faults: Vec<_> = warnings.into_iter().map(|w| Fault::new(&w.toggle_name, w.message)).collect();
        if faults.is_empty() { Ok(Self(engine)) } else { Err(faults) }
    }

    /// The stage of (account, kind).
    pub(super) fn stage(&self, account: &str, kind: &str) -> Stage {
        stage_of(|flag| self.is_on(flag, account, kind))
    }

    /// Whether one flag is on for (account, kind).
    pub(super) fn is_on(&self, flag: Flag, account: &str, kind: &str) -> bool {
        let properties: PropertiesCow<'_> = HashMap::from([(Cow::Borrowed("kind"), Cow::Borrowed(kind))]);
        // The schema has seen to it that all four are there.
        self.0.check_enabled(&context(flag, account, &properties)).unwrap_or(false)
    }
}

fn context<'a>(flag: Flag, account: &'a str, properties: &'a PropertiesCow<'a>) -> EnrichedContext<'a> {
    EnrichedContext {
        user_id: Some(account),
        session_id: None,
        environment: None,
        app_name: None,
        current_time: None,
        remote_address: None,
        properties: Some(PropertiesRef::Cows(properties)),
        external_results: None,
        toggle_name: flag.name(),
        runtime_hostname: None,
    }
}

/// The highest stage whose flag is on; the kill switch caps it at `shadow`.
pub(super) fn stage_of(is_on: impl Fn(Flag) -> bool) -> Stage {
    let highest = [(Flag::Complete, Stage::Complete), (Flag::Live, Stage::Live), (Flag::Shadow, Stage::Shadow)]
        .into_iter()
        .find(|(flag, _)| is_on(*flag))
        .map_or(Stage::Off, |(_, stage)| stage);
    if highest > Stage::Shadow && is_on(Flag::Kill) { Stage::Shadow } else { highest }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Stage::*;

    #[test]
    fn the_highest_flag_that_is_on_is_the_stage_and_kill_caps_it_at_shadow() {
        // shadow, live, complete on: the stage, and the stage under kill.
        let table = [
            ([false, false, false], Off, Off),
            ([true, false, false], Shadow, Shadow),
            ([false, true, false], Live, Shadow),
            ([true, true, false], Live, Shadow),
            ([false, false, true], Complete, Shadow),
            ([true, false, true], Complete, Shadow),
            ([false, true, true], Complete, Shadow),
            ([true, true, true], Complete, Shadow),
        ];
        for ([shadow, live, complete], alive, killed) in table {
            for (kill, expected) in [(false, alive), (true, killed)] {
                let stage = stage_of(|flag| match flag {
                    Flag::Shadow => shadow,
                    Flag::Live => live,
                    Flag::Complete => complete,
                    Flag::Kill => kill,
                });
                assert_eq!(stage, expected, "shadow {shadow}, live {live}, complete {complete}, kill {kill}");
            }
        }
    }
}
