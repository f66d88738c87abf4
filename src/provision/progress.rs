//! Who hears what is being done: bars on a terminal, lines in a log, or nobody.

use std::fmt;
use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// A place where steps are shown. Cheap to clone; clones share the place.
#[derive(Clone)]
pub struct Progress(Sink);

#[derive(Clone)]
enum Sink {
    Silent,
    Lines(Arc<dyn Fn(&str) + Send + Sync>),
    Bars(MultiProgress),
}

/// Something that is being done. Dropping it ends it.
#[must_use]
pub struct Step(Option<ProgressBar>);

impl Progress {
    /// Nobody hears.
    pub fn silent() -> Self {
        Self(Sink::Silent)
    }

    /// One call for each step.
    pub fn lines(hear: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self(Sink::Lines(Arc::new(hear)))
    }

    /// Bars where stderr is a terminal, else plain lines on it.
    pub fn stderr() -> Self {
        if std::io::stderr().is_terminal() {
            return Self(Sink::Bars(MultiProgress::new()));
        }
        Self::lines(|text| eprintln!("{text}"))
    }

    /// Begins a step of unknown length.
    pub fn step(&self, text: &str) -> Step {
        self.begin(text, |bars| {
            let bar = bars.add(ProgressBar::new_spinner());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        })
    }

    /// Begins a step over so many bytes.
    pub fn bytes(&self, text: &str, total: u64) -> Step {
        self.begin(text, |bars| {
            let style = ProgressStyle::with_template("{msg} {bar:30} {bytes}/{total_bytes}");
            bars.add(ProgressBar::new(total)).with_style(style.expect("a template of ours"))
        })
    }

    /// Begins a step over so many things.
    pub fn count(&self, text: &str, total: u64) -> Step {
        self.begin(text, |bars| {
            let style = ProgressStyle::with_template("{msg} {bar:30} {pos}/{len}");
            bars.add(ProgressBar::new(total)).with_style(style.expect("a template of ours"))
        })
    }

    /// Tells something that has happened. It stays, above the bars.
    pub fn say(&self, text: &str) {
        match &self.0 {
            Sink::Silent => {}
            Sink::Lines(hear) => hear(text),
            // A terminal that is gone has no reader either.
            Sink::Bars(bars) => _ = bars.println(text),
        }
    }

    fn begin(&self, text: &str, bar: impl FnOnce(&MultiProgress) -> ProgressBar) -> Step {
        match &self.0 {
            Sink::Silent => Step(None),
            Sink::Lines(hear) => {
                hear(text);
                Step(None)
            }
            Sink::Bars(bars) => Step(Some(bar(bars).with_message(text.to_owned()))),
        }
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Sink::Silent => "silent",
            Sink::Lines(_) => "lines",
            Sink::Bars(_) => "bars",
        })
    }
}

impl Step {
    /// So many bytes more are done.
    pub fn advance(&self, bytes: u64) {
        if let Some(bar) = &self.0 {
            bar.inc(bytes);
        }
    }

    /// So many are done in all.
    pub fn reach(&self, done: u64) {
        if let Some(bar) = &self.0 {
            bar.set_position(done);
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Some(bar) = self.0.take() {
            bar.finish_and_clear();
        }
    }
}
