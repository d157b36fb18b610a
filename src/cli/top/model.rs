//! What the screen shows, and what each key does.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::keys::Key;
use super::line::Line;
use super::snapshot::Snapshot;
use super::sort::Sort;
use crate::report::Report;
use crate::sampler::Sample;

/// How many samples a sparkline can show.
const HISTORY: usize = 120;

/// A change of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    Stop,
    Pause,
    Resume,
    /// The flags of `gpurun update`.
    Update(String),
}

/// A change, and the container that it is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Action {
    pub id: String,
    pub name: String,
    pub change: Change,
}

/// What a key asks the screen to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Effect {
    Quit,
    /// Draw every cell again, because another program has written to the terminal.
    Redraw,
    Perform(Action),
}

/// What the keys do at the moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum Mode {
    #[default]
    Table,
    Help,
    /// The filter is typed. Escape restores the earlier one.
    Filter {
        line: Line,
        earlier: String,
    },
    /// The question whether to stop a container.
    Confirm {
        id: String,
        name: String,
    },
    /// The flags of an update are typed.
    Update {
        id: String,
        name: String,
        line: Line,
    },
}

/// A line at the bottom of the screen, until the next key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Status {
    pub text: String,
    pub is_error: bool,
}

/// The earlier values of a container, the oldest first.
#[derive(Debug, Default)]
pub(super) struct History {
    /// Percentages of one CPU.
    pub cpu: VecDeque<f64>,
    /// Bytes.
    pub memory: VecDeque<f64>,
}

#[derive(Debug, Default)]
pub(super) struct Model {
    /// The latest sample. `None` until there is one.
    pub snapshot: Option<Snapshot>,
    pub sort: Sort,
    pub is_reversed: bool,
    pub filter: String,
    pub mode: Mode,
    pub status: Option<Status>,
    /// The id of the selected container. It stays selected and visible when the order changes. Nothing is selected at the
    /// beginning, so that the first rows are visible, and when the selected container has ended, so that no key hits
    /// another one.
    pub selected: Option<String>,
    /// The first row that is shown.
    pub offset: usize,
    /// The number of rows that the screen had place for when it was last drawn.
    pub page: usize,
    history: BTreeMap<String, History>,
    /// The ids of the containers that are being changed.
    busy: BTreeSet<String>,
}

impl Model {
    /// Takes in a new sample.
    pub(super) fn update(&mut self, snapshot: Snapshot) {
        let ids: BTreeSet<&str> = snapshot.containers.iter().map(|sample| sample.id.as_str()).collect();
        self.history.retain(|id, _| ids.contains(id.as_str()));
        self.selected.take_if(|id| !ids.contains(id.as_str()));
        for sample in &snapshot.containers {
            let history = self.history.entry(sample.id.clone()).or_default();
            if let Some(cpu) = sample.cpu_percent {
                push(&mut history.cpu, cpu);
            }
            push(&mut history.memory, sample.stats.memory_used.unwrap_or(0) as f64);
        }
        self.snapshot = Some(snapshot);
        self.show_selected();
    }

    /// The containers that the filter selects, in their order.
    pub(super) fn rows(&self) -> Vec<&Sample> {
        let filter = self.filter.to_lowercase();
        let has = |text: &str| text.to_lowercase().contains(&filter);
        let all = self.snapshot.iter().flat_map(|snapshot| &snapshot.containers);
        let mut rows: Vec<&Sample> = all.filter(|sample| has(&sample.name) || has(&sample.owner)).collect();
        rows.sort_by(|one, other| self.sort.compare(one, other, self.is_reversed));
        rows
    }

    pub(super) fn history(&self, id: &str) -> Option<&History> {
        self.history.get(id)
    }

    /// Ends an action, and shows its result.
    pub(super) fn finished(&mut self, id: &str, result: Result<String, Report>) {
        self.busy.remove(id);
        match result {
            Ok(text) => self.say(text),
            Err(report) => self.fail(&report),
        }
    }

    pub(super) fn say(&mut self, text: impl Into<String>) {
        self.status = Some(Status { text: text.into(), is_error: false });
    }

    pub(super) fn fail(&mut self, report: &Report) {
        let causes = report.causes.iter().map(|cause| format!(": {cause}")).collect::<String>();
        let hint = report.hint.iter().map(|hint| format!("; hint: {hint}")).collect::<String>();
        self.status = Some(Status { text: format!("error: {}{causes}{hint}", report.message), is_error: true });
    }

    /// Handles a key.
    pub(super) fn key(&mut self, key: Key) -> Option<Effect> {
        self.status = None;
        if key == Key::Redraw {
            return Some(Effect::Redraw);
        }
        match std::mem::take(&mut self.mode) {
            Mode::Table => self.table_key(key),
            // Any key ends the help.
            Mode::Help => None,
            Mode::Filter { line, earlier } => {
                self.filter_key(key, line, earlier);
                None
            }
            Mode::Confirm { id, name } if matches!(key, Key::Char('y' | 'Y')) => self.perform(id, name, Change::Stop),
            Mode::Confirm { .. } => None,
            Mode::Update { id, name, line } => self.update_key(key, id, name, line),
        }
    }

    fn table_key(&mut self, key: Key) -> Option<Effect> {
        match key {
            Key::Char('q' | 'Q') => return Some(Effect::Quit),
            Key::Char('?' | 'h') => self.mode = Mode::Help,
            Key::Char('s') => self.sort = self.sort.next(),
            Key::Char('r') => self.is_reversed = !self.is_reversed,
            Key::Char('/') => {
                self.mode = Mode::Filter { line: Line::of(&self.filter), earlier: self.filter.clone() };
            }
            Key::Escape => {
                self.filter.clear();
                self.selected = None;
                self.offset = 0;
            }
            Key::Up => self.step(-1),
            Key::Down => self.step(1),
            Key::PageUp => self.step(-(self.page as isize)),
            Key::PageDown => self.step(self.page as isize),
            Key::Home => self.select(0),
            Key::End => self.select(usize::MAX),
            Key::Char('k' | 'p' | 'u') => return self.change_key(key),
            _ => {}
        }
        self.show_selected();
        None
    }

    /// A key that changes the selected container.
    fn change_key(&mut self, key: Key) -> Option<Effect> {
        let rows = self.rows();
        let Some(sample) = rows.into_iter().find(|sample| Some(&sample.id) == self.selected.as_ref()) else {
            self.say("no container is selected: select one with the arrow keys");
            return None;
        };
        let (id, name, paused) = (sample.id.clone(), sample.name.clone(), sample.paused);
        if self.busy.contains(&id) {
            self.say(format!("`{name}` is being changed"));
            return None;
        }
        match key {
            Key::Char('p') => return self.perform(id, name, if paused { Change::Resume } else { Change::Pause }),
            Key::Char('u') => self.mode = Mode::Update { id, name, line: Line::default() },
            _ => self.mode = Mode::Confirm { id, name },
        }
        None
    }

    fn filter_key(&mut self, key: Key, mut line: Line, earlier: String) {
        match key {
            Key::Enter => {}
            Key::Escape => self.filter = earlier,
            key => {
                line.edit(key);
                self.filter = line.text();
                self.mode = Mode::Filter { line, earlier };
            }
        }
        self.show_selected();
    }

    fn update_key(&mut self, key: Key, id: String, name: String, mut line: Line) -> Option<Effect> {
        match key {
            Key::Escape => None,
            Key::Enter if line.text().trim().is_empty() => None,
            Key::Enter => self.perform(id, name, Change::Update(line.text())),
            key => {
                line.edit(key);
                self.mode = Mode::Update { id, name, line };
                None
            }
        }
    }

    fn perform(&mut self, id: String, name: String, change: Change) -> Option<Effect> {
        match change {
            Change::Stop => self.say(format!("stopping `{name}`")),
            Change::Update(_) => self.say(format!("updating `{name}`")),
            Change::Pause | Change::Resume => {}
        }
        self.busy.insert(id.clone());
        Some(Effect::Perform(Action { id, name, change }))
    }

    /// Moves the selection by a number of rows. Without a selection, selects the first row that is shown.
    fn step(&mut self, by: isize) {
        match self.position() {
            Some(at) => self.select(at.saturating_add_signed(by)),
            None => self.select(self.offset),
        }
    }

    /// Selects a row, or the last one if there are fewer.
    fn select(&mut self, at: usize) {
        let rows = self.rows();
        let at = at.min(rows.len().saturating_sub(1));
        self.selected = rows.get(at).map(|sample| sample.id.clone());
    }

    /// The row of the selected container.
    pub(super) fn position(&self) -> Option<usize> {
        let selected = self.selected.as_ref()?;
        self.rows().iter().position(|sample| sample.id == *selected)
    }

    /// Scrolls so that the selected container is among the rows that are shown, and no place stays empty.
    pub(super) fn show_selected(&mut self) {
        let (count, page) = (self.rows().len(), self.page.max(1));
        self.offset = self.offset.min(count.saturating_sub(page));
        if let Some(at) = self.position() {
            self.offset = self.offset.clamp((at + 1).saturating_sub(page), at);
        }
    }
}

fn push(values: &mut VecDeque<f64>, value: f64) {
    if values.len() == HISTORY {
        values.pop_front();
    }
    values.push_back(value);
}
