//! Draws the model: the host at the top, one row per container, and a line for keys, questions and messages at the
//! bottom.

use std::collections::VecDeque;

use ratatui::buffer::Buffer;
use ratatui::layout::{Position, Rect};
use ratatui::style::{Color, Modifier, Style};

use super::line::Line;
use super::model::{Mode, Model};
use super::snapshot::Snapshot;
use super::text::{cpu, gauge, percent, size, size_of, sparkline};
use crate::cgroup::Pressure;
use crate::report::printable_line;
use crate::sampler::{HostGpu, HostSample, Sample};

/// The smallest screen that shows a container.
const LEAST: (u16, u16) = (30, 6);
const PLAIN: Style = Style::new();
const DIM: Style = Style::new().add_modifier(Modifier::DIM);
const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
const ALARM: Style = Style::new().fg(Color::Red).add_modifier(Modifier::BOLD);
const TITLE: Style = Style::new().add_modifier(Modifier::REVERSED);
const SELECTED: Style = Style::new().fg(Color::Black).bg(Color::Cyan);
/// The rows below the host that a low screen keeps: titles, containers, and the line at the bottom.
const KEPT: u16 = 4;

/// How the terminal shows text, and what is the same in every frame.
#[derive(Debug, Clone, Default)]
pub(super) struct Look {
    /// The terminal may not show Unicode.
    pub is_ascii: bool,
    /// Seconds between two samples.
    pub interval: f64,
    /// The local time: `14:03:22`.
    pub clock: String,
}

/// Draws the screen. Returns the position of the cursor if text is typed.
pub(super) fn draw(model: &mut Model, look: &Look, buffer: &mut Buffer) -> Option<Position> {
    let area = buffer.area;
    if area.width < LEAST.0 || area.height < LEAST.1 {
        put(buffer, 0, 0, area.width, "the terminal is too small", PLAIN);
        return None;
    }
    let Some(snapshot) = &model.snapshot else {
        put(buffer, 0, 0, area.width, "taking the first sample", PLAIN);
        return None;
    };
    let top = draw_host(snapshot, look, buffer);
    let foot = foot(model, area.width.into());
    let bottom = area.height.saturating_sub(foot.lines.len() as u16).max(top + 1);
    model.page = usize::from(bottom.saturating_sub(top + 1));
    model.show_selected();
    match model.mode {
        Mode::Help => draw_help(top, buffer),
        _ => draw_table(model, look, top, bottom, buffer),
    }
    for (at, line) in foot.lines.iter().enumerate() {
        put(buffer, 0, bottom + at as u16, area.width, line, foot.style);
    }
    foot.cursor.map(|column| Position::new((column as u16).min(area.width - 1), area.height - 1))
}

/// One sample as text, for `--once`.
pub(super) fn printed(snapshot: &Snapshot, width: Option<usize>) -> String {
    let width = width.unwrap_or(120).clamp(LEAST.0.into(), 300) as u16;
    let height = snapshot.containers.len().min(10_000) as u16 + 10;
    let mut buffer = Buffer::empty(Rect::new(0, 0, width, height));
    let look = Look::default();
    let top = draw_host(snapshot, &look, &mut buffer);
    let rows: Vec<&Sample> = {
        let mut rows: Vec<&Sample> = snapshot.containers.iter().collect();
        rows.sort_by(|one, other| super::sort::Sort::default().compare(one, other, false));
        rows
    };
    let columns = columns(snapshot, width.into(), false);
    draw_titles(&columns, top, &mut buffer);
    for (y, sample) in (top + 1..).zip(&rows) {
        draw_cells(&columns, &|column| cell(column, sample), y, &mut buffer);
    }
    let lines: Vec<String> = (0..height).map(|y| row_text(&buffer, y)).collect();
    lines.join("\n").trim_end().to_owned() + "\n"
}

fn row_text(buffer: &Buffer, y: u16) -> String {
    let text: String = (0..buffer.area.width).filter_map(|x| buffer.cell((x, y)).map(|cell| cell.symbol())).collect();
    text.trim_end().to_owned()
}

/// Writes text that may come from a container. Text that does not fit is truncated.
fn put(buffer: &mut Buffer, x: u16, y: u16, width: u16, text: &str, style: Style) {
    if x < buffer.area.right() && y < buffer.area.bottom() {
        buffer.set_stringn(x, y, printable_line(text), width.into(), style);
    }
}

// The host.

/// Draws the lines of the host, of which a low screen shows the first ones. Returns the row after them.
fn draw_host(snapshot: &Snapshot, look: &Look, buffer: &mut Buffer) -> u16 {
    let (host, width) = (&snapshot.host, buffer.area.width);
    let mut lines = vec![headline(snapshot, look), cpus(host, width.into()), memory(host, width.into())];
    lines.extend((!host.gpus.is_empty()).then(|| gpus(&host.gpus, width.into())));
    let shown = buffer.area.height.saturating_sub(KEPT).clamp(1, lines.len() as u16);
    for (y, line) in (0..shown).zip(&lines) {
        put(buffer, 0, y, width, line, if y == 0 { BOLD } else { PLAIN });
    }
    shown
}

/// The width of a gauge.
fn gauge_width(width: usize) -> usize {
    (width / 4).clamp(8, 40)
}

fn cpus(host: &HostSample, width: usize) -> String {
    let (gauge, part) = (gauge(host.cpu_percent, gauge_width(width)), percent(host.cpu_percent));
    format!("CPU {gauge} {part:>3}% of {} CPUs   {}", host.cpus, pressures(host))
}

fn memory(host: &HostSample, width: usize) -> String {
    let part = host.memory_used.zip(host.memory_total).map(|(used, total)| 100.0 * used as f64 / total.max(1) as f64);
    let swap = match (host.swap_used, host.swap_total) {
        (Some(used), Some(total)) if total > 0 => format!("   swap {} / {}", size(used), size(total)),
        _ => String::new(),
    };
    let (used, total) = (size_of(host.memory_used), size_of(host.memory_total));
    format!("Mem {} {:>3}% {used} / {total}{swap}", gauge(part, gauge_width(width)), percent(part))
}

fn headline(snapshot: &Snapshot, look: &Look) -> String {
    let (host, count) = (&snapshot.host, snapshot.containers.len());
    let paused = snapshot.containers.iter().filter(|sample| sample.paused).count();
    let mut parts = vec![host.name.clone()];
    parts.extend((!look.clock.is_empty()).then(|| look.clock.clone()));
    parts.extend(host.load.map(|[one, five, fifteen]| format!("load {one:.2} {five:.2} {fifteen:.2}")));
    let containers = if count == 1 { "container" } else { "containers" };
    let paused = if paused > 0 { format!(" ({paused} paused)") } else { String::new() };
    parts.push(format!("{count} {containers}{paused}"));
    parts.extend((look.interval > 0.0).then(|| format!("every {} s", look.interval)));
    parts.join("  ")
}

fn pressures(host: &HostSample) -> String {
    let one = |name: &str, pressure: Option<Pressure>| {
        format!("{name} {}", pressure.map_or_else(|| "-".into(), |pressure| format!("{:.0}%", pressure.some_avg10)))
    };
    let all = [("cpu", host.cpu_pressure), ("mem", host.memory_pressure), ("io", host.io_pressure)];
    format!("PSI {}", all.map(|(name, pressure)| one(name, pressure)).join(" "))
}

/// Lists the GPUs on one line. If they do not fit, the last ones are counted.
fn gpus(gpus: &[HostGpu], width: usize) -> String {
    let one = |gpu: &HostGpu| {
        let memory = match (gpu.memory_used, gpu.memory_total) {
            (Some(used), Some(total)) => format!(" {}/{}", size(used), size(total)),
            _ => String::new(),
        };
        let busy = gpu.utilization.map_or_else(|| "-".into(), |percent| format!("{percent}%"));
        format!("{} {busy}{memory}", gpu.index)
    };
    let all: Vec<String> = gpus.iter().map(one).collect();
    let line = |shown: usize| {
        let more = if shown < all.len() { format!("  +{} more", all.len() - shown) } else { String::new() };
        format!("GPU {}{more}", all[..shown].join("  "))
    };
    (1..=all.len()).rev().map(line).find(|line| line.chars().count() <= width).unwrap_or_else(|| line(1))
}

// The containers.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Column {
    Name,
    User,
    Cpu,
    CpuHistory,
    Throttled,
    Memory,
    MemoryHistory,
    Pressure,
    Gpu,
    GpuMemory,
    Pids,
}

use Column::{Cpu, CpuHistory, Gpu, GpuMemory, Memory, MemoryHistory, Name, Pids, Pressure as Psi, Throttled, User};

impl Column {
    /// Title and least width.
    fn title(self) -> (&'static str, usize) {
        match self {
            Name => ("NAME", 12),
            User => ("USER", 8),
            Cpu => ("CPU%", 6),
            CpuHistory => ("", 8),
            Throttled => ("THR%", 4),
            Memory => ("MEM/LIMIT", 11),
            MemoryHistory => ("", 6),
            Psi => ("PSI", 3),
            Gpu => ("GPU%", 4),
            GpuMemory => ("GPUMEM", 6),
            Pids => ("PIDS", 5),
        }
    }

    fn is_right_aligned(self) -> bool {
        !matches!(self, Name | User)
    }
}

/// The order in which columns are left out on a narrow screen.
const DISPENSABLE: [Column; 9] = [Pids, MemoryHistory, User, CpuHistory, Psi, Throttled, Gpu, GpuMemory, Memory];
/// The widest name, user and history.
const WIDEST: [(Column, usize); 4] = [(Name, 40), (User, 16), (CpuHistory, 40), (MemoryHistory, 40)];

/// Returns the columns that fit, with their widths.
fn columns(snapshot: &Snapshot, width: usize, with_history: bool) -> Vec<(Column, usize)> {
    let with_gpus = !snapshot.host.gpus.is_empty() || snapshot.containers.iter().any(|sample| sample.has_gpus);
    let all = [Name, User, Cpu, CpuHistory, Throttled, Memory, MemoryHistory, Psi, Gpu, GpuMemory, Pids];
    let mut columns: Vec<(Column, usize)> = all
        .into_iter()
        .filter(|column| with_gpus || !matches!(column, Gpu | GpuMemory))
        .filter(|column| with_history || !matches!(column, CpuHistory | MemoryHistory))
        .map(|column| (column, column.title().1))
        .collect();
    let needed = |columns: &[(Column, usize)]| columns.iter().map(|(_, width)| width + 1).sum::<usize>();
    for column in DISPENSABLE {
        if needed(&columns) > width {
            columns.retain(|(other, _)| *other != column);
        }
    }
    // The rest of the place goes to the columns that can use it, evenly.
    let longest = |of: fn(&Sample) -> &String| {
        snapshot.containers.iter().map(|sample| printable_line(of(sample)).chars().count()).max().unwrap_or(0)
    };
    let wanted = |column: Column, most: usize| match column {
        Name => longest(|sample| &sample.name).min(most),
        User => longest(|sample| &sample.owner).min(most),
        _ => most,
    };
    while needed(&columns) < width {
        let mut grown = false;
        for (column, most) in WIDEST {
            let most = wanted(column, most);
            let full = needed(&columns) >= width;
            if let Some((_, width)) =
                columns.iter_mut().find(|(other, width)| *other == column && *width < most && !full)
            {
                *width += 1;
                grown = true;
            }
        }
        if !grown {
            break;
        }
    }
    columns
}

fn draw_titles(columns: &[(Column, usize)], y: u16, buffer: &mut Buffer) {
    let blank = " ".repeat(buffer.area.width.into());
    put(buffer, 0, y, buffer.area.width, &blank, TITLE);
    draw_cells(columns, &|column| (column.title().0.to_owned(), TITLE), y, buffer);
}

/// Draws one cell per column, each after one blank.
fn draw_cells(columns: &[(Column, usize)], cell: &dyn Fn(Column) -> (String, Style), y: u16, buffer: &mut Buffer) {
    let mut x = 1;
    for &(column, width) in columns {
        let (text, style) = cell(column);
        let text = if column.is_right_aligned() { format!("{text:>width$}") } else { text };
        put(buffer, x, y, width as u16, &text, style);
        x += width as u16 + 1;
    }
}

fn draw_table(model: &Model, look: &Look, top: u16, bottom: u16, buffer: &mut Buffer) {
    let Some(snapshot) = &model.snapshot else { return };
    let columns = columns(snapshot, buffer.area.width.into(), true);
    draw_titles(&columns, top, buffer);
    let rows = model.rows();
    if rows.is_empty() {
        let none = if model.filter.is_empty() { "no container is running" } else { "the filter matches no container" };
        put(buffer, 1, top + 1, buffer.area.width - 1, none, DIM);
    }
    for (y, sample) in (top + 1..bottom).zip(rows.iter().skip(model.offset)) {
        draw_cells(
            &columns,
            &|column| history(model, look, column, &columns, sample).unwrap_or_else(|| cell(column, sample)),
            y,
            buffer,
        );
        if model.selected.as_ref() == Some(&sample.id) {
            put(buffer, 0, y, 1, ">", BOLD);
            buffer.set_style(Rect::new(0, y, buffer.area.width, 1), SELECTED);
        }
    }
}

/// Returns the text of a cell with a sparkline.
fn history(
    model: &Model,
    look: &Look,
    column: Column,
    columns: &[(Column, usize)],
    sample: &Sample,
) -> Option<(String, Style)> {
    if !matches!(column, CpuHistory | MemoryHistory) {
        return None;
    }
    let width = columns.iter().find(|(other, _)| *other == column)?.1;
    let history = model.history(&sample.id)?;
    let largest = |values: &VecDeque<f64>| values.iter().copied().fold(0.0, f64::max);
    let host = model.snapshot.as_ref().and_then(|snapshot| snapshot.host.memory_total);
    let (values, most) = match column {
        // A full bar is one CPU, or the largest value if the container uses more.
        CpuHistory => (&history.cpu, largest(&history.cpu).max(100.0)),
        _ => (&history.memory, sample.stats.memory_limit.or(host).unwrap_or(0) as f64),
    };
    let values: Vec<f64> = values.iter().map(|value| 100.0 * value / most.max(1.0)).collect();
    Some((sparkline(&values, 100.0, width, look.is_ascii), Style::new().fg(Color::Cyan)))
}

fn cell(column: Column, sample: &Sample) -> (String, Style) {
    let stats = &sample.stats;
    let alarm = |is_alarm: bool| if is_alarm { ALARM } else { PLAIN };
    match column {
        Name => (sample.name.clone(), if sample.paused { DIM } else { PLAIN }),
        User => (sample.owner.clone(), PLAIN),
        Cpu if sample.paused => ("paused".into(), DIM),
        Cpu => (cpu(sample.cpu_percent), PLAIN),
        Throttled => {
            (percent(sample.throttled_percent), alarm(sample.throttled_percent.is_some_and(|part| part >= 25.0)))
        }
        Memory => (
            format!("{}/{}", size_of(stats.memory_used), size_of(stats.memory_limit)),
            alarm(sample.memory_percent.is_some_and(|part| part >= 90.0)),
        ),
        Psi => {
            let pressure = stats.memory_pressure.map(|pressure| pressure.some_avg10);
            (percent(pressure), alarm(pressure.is_some_and(|part| part >= 10.0)))
        }
        Gpu => {
            let busy: Vec<u32> = sample.gpus.iter().filter_map(|share| share.utilization).collect();
            let mean = (!busy.is_empty()).then(|| f64::from(busy.iter().sum::<u32>()) / busy.len() as f64);
            (percent(mean), PLAIN)
        }
        GpuMemory => {
            let memory = sample.gpus.iter().map(|share| share.memory).sum();
            (size_of((!sample.gpus.is_empty()).then_some(memory)), PLAIN)
        }
        Pids => (stats.pids_current.map_or_else(|| "-".into(), |count| count.to_string()), PLAIN),
        CpuHistory | MemoryHistory => (String::new(), PLAIN),
    }
}

// The bottom of the screen.

struct Foot {
    lines: Vec<String>,
    style: Style,
    cursor: Option<usize>,
}

/// The most lines of a message.
const MOST_LINES: usize = 4;

fn foot(model: &Model, width: usize) -> Foot {
    let one = |text: String, style| Foot { lines: vec![text], style, cursor: None };
    match &model.mode {
        Mode::Filter { line, .. } => typed("Filter by name or user: ", line, width),
        Mode::Update { name, line, .. } if line.text().is_empty() => {
            let mut foot = typed(&format!("Update `{name}`: "), line, width);
            foot.lines[0].push_str(" flags of `gpurun update`: --memory 4g --cpus 2");
            foot
        }
        Mode::Update { name, line, .. } => typed(&format!("Update `{name}`: "), line, width),
        Mode::Confirm { name, .. } => one(format!("Stop container `{name}`? [y/N]"), BOLD),
        Mode::Help => one("any key closes the help".into(), DIM),
        Mode::Table => match &model.status {
            Some(status) => Foot {
                lines: wrapped(&printable_line(&status.text), width),
                style: if status.is_error { ALARM } else { BOLD },
                cursor: None,
            },
            None => one(keys(model, width), DIM),
        },
    }
}

/// Lists the keys. On a narrow screen, the help names those that do not fit.
fn keys(model: &Model, width: usize) -> String {
    let arrow = if model.is_reversed { " reversed" } else { "" };
    let filter = if model.filter.is_empty() { String::new() } else { format!("={}", model.filter) };
    let mut keys = [
        "k stop".to_owned(),
        "p pause".into(),
        "u update".into(),
        format!("s sort: {}{arrow}", model.sort.name()),
        "r reverse".into(),
        format!("/ filter{filter}"),
        "? help".into(),
        "q quit".into(),
    ];
    let text = |keys: &[String]| keys.iter().filter(|key| !key.is_empty()).cloned().collect::<Vec<_>>().join("  ");
    for dispensable in [4, 2, 1, 0, 5, 3] {
        if text(&keys).chars().count() > width {
            keys[dispensable].clear();
        }
    }
    text(&keys)
}

/// A line that is typed. If it is longer than the screen, its end around the cursor is shown.
fn typed(label: &str, line: &Line, width: usize) -> Foot {
    let text = format!("{}{}", printable_line(label), line.text());
    let cursor = printable_line(label).chars().count() + line.before_cursor().chars().count();
    let skipped = (cursor + 1).saturating_sub(width);
    let shown = text.chars().skip(skipped).collect();
    Foot { lines: vec![shown], style: PLAIN, cursor: Some(cursor - skipped) }
}

/// Splits a message into lines, of which the first few are kept.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let letters: Vec<char> = text.chars().collect();
    let (mut lines, mut rest) = (Vec::new(), &letters[..]);
    while !rest.is_empty() && lines.len() < MOST_LINES {
        let end = match rest.len() <= width {
            true => rest.len(),
            false => rest[..=width].iter().rposition(|c| *c == ' ').filter(|at| *at > width / 2).unwrap_or(width),
        };
        lines.push(rest[..end].iter().collect());
        rest = &rest[end..];
        rest = rest.strip_prefix(&[' ']).unwrap_or(rest);
    }
    if lines.is_empty() { vec![String::new()] } else { lines }
}

const HELP: [&str; 14] = [
    "arrows, PgUp, PgDn, Home, End   select a container",
    "k        stop it: its stop signal, then SIGKILL after its stop timeout",
    "p        pause or resume all of its processes",
    "u        change its limits, with the flags of `gpurun update`",
    "s, r     sort by CPU, memory, GPU memory, name, user; reverse the order",
    "/        show the containers whose name or user contains a text; Escape ends it",
    "ctrl-l   repaint the screen",
    "q        quit (ctrl-c too)",
    "CPU%     of one CPU; bars: the last samples, a full one is one CPU or more",
    "THR%     of the periods in which `--cpus` throttled the container",
    "MEM      without page cache that can be dropped; bars: percentage of the limit",
    "PSI      % of 10 s in which a process waited for memory; - with cgroup v1",
    "GPU%     utilization of its GPUs by all processes, on average",
    "GPUMEM   GPU memory of its own processes",
];

fn draw_help(top: u16, buffer: &mut Buffer) {
    for (y, line) in (top + 1..).zip(HELP) {
        put(buffer, 0, y, buffer.area.width, line, PLAIN);
    }
}
