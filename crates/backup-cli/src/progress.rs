//! What a run shows while it works: a bar on a terminal, lines elsewhere.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use pgark::event::Silent;
use pgark::{Event, Observer};

/// Who watches a run.
pub(crate) fn observer(quiet: bool, json: bool) -> Arc<dyn Observer> {
    if quiet || json {
        return Arc::new(Silent);
    }
    if std::io::stderr().is_terminal() {
        return Arc::new(Bar::new());
    }
    Arc::new(|event: &Event| match event {
        Event::Started { id } => line(&format!("backup {id} started")),
        Event::Warning { message } => line(&format!("warning: {message}")),
        _ => {}
    })
}

fn line(text: &str) {
    // A closed standard error is no reason to fail a backup.
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

struct Bar(ProgressBar);

impl Bar {
    fn new() -> Self {
        let bar = ProgressBar::no_length().with_style(style(false));
        bar.enable_steady_tick(Duration::from_millis(100));
        Self(bar)
    }
}

fn style(with_total: bool) -> ProgressStyle {
    let template = if with_total {
        "{spinner} {bytes} of about {total_bytes} {bar:30} {bytes_per_sec}, {eta} left {msg}"
    } else {
        "{spinner} {bytes} {bytes_per_sec} {msg}"
    };
    // The templates are ours; a wrong one only looks plainer.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

impl Observer for Bar {
    fn event(&self, event: &Event) {
        match event {
            Event::Started { id } => self.0.println(format!("backup {id} started")),
            Event::Expected { raw_bytes } if *raw_bytes > 0 => {
                self.0.set_style(style(true));
                self.0.set_length(*raw_bytes);
            }
            Event::Progress { raw_bytes, .. } => {
                // The total is an estimate: the bar must not end before the run does.
                if self.0.length().is_some_and(|total| *raw_bytes > total) {
                    self.0.set_length(*raw_bytes);
                }
                self.0.set_position(*raw_bytes);
            }
            Event::Warning { message } => self.0.println(format!("warning: {message}")),
            Event::Step { what } => self.0.set_message(what.clone()),
            _ => {}
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
