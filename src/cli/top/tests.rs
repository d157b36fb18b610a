//! What the screen shows and what the keys do, without a terminal and without containers.

use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::keys::Key;
use super::model::{Action, Change, Effect, Mode, Model};
use super::snapshot::Snapshot;
use super::view::{self, Look};
use crate::cgroup::{Pressure, Stats};
use crate::gpu::usage::Share;
use crate::report::Report;
use crate::sampler::{HostGpu, HostSample, Sample};

const GIB: u64 = 1 << 30;

fn pressure(some: f64) -> Option<Pressure> {
    Some(Pressure { some_avg10: some, ..Pressure::default() })
}

fn sample(name: &str, owner: &str, cpu: f64, memory: u64, limit: Option<u64>) -> Sample {
    Sample {
        id: name.repeat(64).chars().take(64).collect(),
        name: name.into(),
        owner: owner.into(),
        cpu_percent: Some(cpu),
        throttled_percent: Some(0.0),
        memory_percent: limit.map(|limit| 100.0 * memory as f64 / limit as f64),
        stats: Stats {
            memory_used: Some(memory),
            memory_limit: limit,
            pids_current: Some(7),
            memory_pressure: pressure(0.0),
            ..Stats::default()
        },
        ..Sample::default()
    }
}

fn host() -> HostSample {
    let gpu = |index: &str, busy, used| HostGpu {
        index: index.into(),
        utilization: Some(busy),
        memory_used: Some(used),
        memory_total: Some(80 * GIB),
        ..HostGpu::default()
    };
    HostSample {
        name: "lab1".into(),
        cpus: 16,
        cpu_percent: Some(43.7),
        load: Some([6.02, 5.5, 4.0]),
        memory_total: Some(128 * GIB),
        memory_used: Some(61 * GIB),
        swap_total: Some(8 * GIB),
        swap_used: Some(GIB / 2),
        cpu_pressure: pressure(3.2),
        memory_pressure: pressure(0.0),
        io_pressure: None,
        gpus: vec![gpu("0", 93, 41 * GIB), gpu("1", 0, 0)],
    }
}

/// A lab's machine: a training run, a notebook at its limits, a container that is paused, one of root, and one whose
/// name and owner try to act on the terminal.
fn snapshot() -> Snapshot {
    let share = Share { index: "0".into(), name: "GPU-0".into(), memory: 40 * GIB, utilization: Some(93) };
    let train = Sample { gpus: vec![share], has_gpus: true, ..sample("train", "ada", 612.3, 24 * GIB, Some(64 * GIB)) };
    let mut notebook = sample("notebook-of-a-very-long-name", "grace.hopper", 99.5, 3900 << 20, Some(4 * GIB));
    notebook.throttled_percent = Some(61.0);
    notebook.stats.memory_pressure = pressure(34.4);
    let paused = Sample { paused: true, ..sample("paused", "ada", 0.0, 300 << 20, Some(512 << 20)) };
    let mut v1 = sample("v1", "root", 0.4, 12 << 20, None);
    v1.stats.memory_pressure = None;
    let hostile = sample("evil\x1b[2J\u{202e}", "\u{9b}m\n", 0.0, 0, None);
    Snapshot { time: 0, host: host(), containers: vec![train, notebook, paused, v1, hostile] }
}

fn model() -> Model {
    let mut model = Model::default();
    for cpu in [10.0, 80.0, 320.0] {
        let mut earlier = snapshot();
        earlier.containers[0].cpu_percent = Some(cpu);
        earlier.containers[0].stats.memory_used = Some((cpu as u64) << 27);
        model.update(earlier);
    }
    model.update(snapshot());
    model
}

fn look() -> Look {
    Look { is_ascii: false, interval: 2.0, clock: "14:03:22".into() }
}

fn draw(model: &mut Model, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal
        .draw(|frame| {
            if let Some(cursor) = view::draw(model, &look(), frame.buffer_mut()) {
                frame.set_cursor_position(cursor);
            }
        })
        .unwrap();
    terminal.backend().to_string()
}

fn type_text(model: &mut Model, text: &str) {
    for c in text.chars() {
        assert_eq!(model.key(Key::Char(c)), None);
    }
}

#[test]
fn eighty_columns() {
    let mut model = model();
    model.key(Key::Home);
    insta::assert_snapshot!(draw(&mut model, 80, 24));
}

#[test]
fn other_sizes() {
    let sizes = [(140, 12), (60, 12), (40, 10), (30, 6)];
    let all = sizes.map(|(width, height)| format!("{width} x {height}\n{}", draw(&mut model(), width, height)));
    insta::assert_snapshot!(all.join("\n"));
    assert!(draw(&mut model(), 29, 24).contains("the terminal is too small"));
    assert!(draw(&mut model(), 80, 5).contains("the terminal is too small"));
    draw(&mut model(), 1, 1);
    assert!(draw(&mut Model::default(), 80, 24).contains("taking the first sample"));
}

#[test]
fn no_text_acts_on_the_terminal() {
    let mut model = model();
    model.fail(&Report::new("a\x1b[31mb").with_cause("\u{9b}1m\nc").with_hint("\x07"));
    let text = draw(&mut model, 200, 24);
    assert!(!text.chars().any(|c| c != '\n' && crate::report::is_obeyed(c)), "{text:?}");
    assert!(text.contains("evil\\x1b[2J\\u{202e}") && text.contains("error: a\\x1b[31mb"), "{text}");
}

#[test]
fn a_host_without_gpus_and_containers() {
    let mut model = Model::default();
    model.update(Snapshot { host: HostSample { gpus: Vec::new(), ..host() }, ..Snapshot::default() });
    let text = draw(&mut model, 80, 8);
    assert!(text.contains("no container is running") && !text.contains("GPU"), "{text}");
    assert_eq!(model.key(Key::Char('k')), None);
    assert!(draw(&mut model, 80, 8).contains("no container is selected"));
    let mut many = host();
    many.gpus = (0..16).map(|at| HostGpu { index: at.to_string(), ..many.gpus[0].clone() }).collect();
    model.update(Snapshot { host: many, ..Snapshot::default() });
    assert!(draw(&mut model, 80, 8).contains("  +13 more"), "{}", draw(&mut model, 80, 8));
}

#[test]
fn one_sample_as_text() {
    insta::assert_snapshot!(view::printed(&snapshot(), Some(80)));
}

#[test]
fn the_help_and_the_lines_at_the_bottom() {
    let mut model = model();
    let last = |model: &mut Model| draw(model, 80, 24).lines().last().unwrap().trim_matches('"').trim_end().to_owned();
    model.key(Key::Char('?'));
    insta::assert_snapshot!(draw(&mut model, 80, 24));
    assert_eq!(model.key(Key::Char('q')), None, "any key closes the help");
    model.key(Key::Home);
    model.key(Key::Char('k'));
    assert_eq!(last(&mut model), "Stop container `train`? [y/N]");
    model.key(Key::Char('n'));
    model.key(Key::Char('u'));
    assert_eq!(last(&mut model), "Update `train`:  flags of `gpurun update`: --memory 4g --cpus 2");
    type_text(&mut model, "--memory 4g");
    assert_eq!(last(&mut model), "Update `train`: --memory 4g");
    type_text(&mut model, &"x".repeat(200));
    assert_eq!(last(&mut model), "x".repeat(79));
    model.key(Key::Escape);
    model.fail(&Report::new("cannot do it").with_cause("word ".repeat(100)));
    let text = draw(&mut model, 80, 24);
    assert!(text.contains("error: cannot do it: word") && text.contains("NAME"), "{text}");
    model.key(Key::Up);
    assert!(last(&mut model).starts_with("k stop  p pause  u update  s sort: CPU"), "{}", last(&mut model));
}

#[test]
fn keys_sort_and_filter() {
    let mut model = model();
    let names = |model: &Model| model.rows().iter().map(|sample| sample.name[..2].to_owned()).collect::<Vec<_>>();
    assert_eq!(names(&model), ["tr", "no", "v1", "ev", "pa"]);
    model.key(Key::Home);
    model.key(Key::Char('s'));
    assert_eq!(names(&model), ["tr", "no", "pa", "v1", "ev"]);
    model.key(Key::Char('r'));
    assert_eq!(names(&model), ["ev", "v1", "pa", "no", "tr"]);
    // The selected container stays selected.
    assert_eq!(model.position(), Some(4));
    model.key(Key::Char('/'));
    type_text(&mut model, "ADA");
    assert_eq!((names(&model), &model.filter), (vec!["pa".into(), "tr".into()], &"ADA".into()));
    model.key(Key::Enter);
    assert_eq!((&model.mode, names(&model).len()), (&Mode::Table, 2));
    // Escape leaves the line with the earlier filter, and then removes it.
    model.key(Key::Char('/'));
    type_text(&mut model, "x");
    assert!(names(&model).is_empty());
    assert!(draw(&mut model, 80, 24).contains("the filter matches no container"));
    model.key(Key::Escape);
    assert_eq!(model.filter, "ADA");
    model.key(Key::Escape);
    assert_eq!((names(&model).len(), model.position()), (5, None));
    assert_eq!((model.key(Key::Char('q')), model.key(Key::Redraw)), (Some(Effect::Quit), Some(Effect::Redraw)));
}

#[test]
fn the_selection_moves_scrolls_and_ends_with_its_container() {
    let mut model = Model::default();
    let many = |names: std::ops::Range<usize>| Snapshot {
        host: HostSample { gpus: Vec::new(), ..host() },
        containers: names.map(|at| sample(&format!("c{at:02}"), "ada", 0.0, 0, None)).collect(),
        ..Snapshot::default()
    };
    model.update(many(0..30));
    // 24 rows, without three of the host, one with titles and one with keys.
    assert!(draw(&mut model, 80, 24).contains("c18") && !draw(&mut model, 80, 24).contains("c19"));
    assert_eq!((model.page, model.position()), (19, None));
    for _ in 0..2 {
        model.key(Key::Up);
        assert_eq!(model.position(), Some(0));
    }
    model.key(Key::PageDown);
    assert_eq!((model.position(), model.offset), (Some(19), 1));
    model.key(Key::End);
    assert_eq!((model.position(), model.offset), (Some(29), 11));
    model.key(Key::Down);
    model.key(Key::Home);
    assert_eq!((model.position(), model.offset), (Some(0), 0));
    model.key(Key::Down);
    let before = draw(&mut model, 80, 24);
    assert!(before.lines().any(|line| line.starts_with("\">c01")), "{before}");
    // The selected container ends: no key may hit its successor.
    model.update(many(2..30));
    assert_eq!((model.position(), model.key(Key::Char('p'))), (None, None));
    assert!(model.status.is_some());
    model.key(Key::Down);
    assert_eq!(model.position(), Some(0));
    // Fewer rows than before leave no empty place.
    model.key(Key::End);
    model.update(many(28..30));
    assert_eq!((model.offset, model.position()), (0, Some(1)));
    // A small screen shows the selected one.
    model.update(many(0..30));
    assert!(draw(&mut model, 80, 8).contains(">c29"));
}

#[test]
fn keys_change_the_selected_container() {
    let mut model = model();
    assert_eq!(model.key(Key::Char('p')), None);
    assert_eq!(model.status.as_ref().unwrap().text, "no container is selected: select one with the arrow keys");
    model.key(Key::Home);
    let id = model.selected.clone().unwrap();
    let action = |change| Some(Effect::Perform(Action { id: id.clone(), name: "train".into(), change }));
    // A stop needs an answer.
    assert_eq!(model.key(Key::Char('k')), None);
    assert_eq!((model.key(Key::Enter), &model.mode), (None, &Mode::Table));
    model.key(Key::Char('k'));
    assert_eq!(model.key(Key::Char('y')), action(Change::Stop));
    assert_eq!(model.status.as_ref().unwrap().text, "stopping `train`");
    // One change at a time.
    assert_eq!(model.key(Key::Char('p')), None);
    assert_eq!(model.status.as_ref().unwrap().text, "`train` is being changed");
    model.finished(&id, Err(Report::new("cannot stop").with_cause("why").with_hint("do this")));
    let status = model.status.clone().unwrap();
    assert!(status.is_error && status.text == "error: cannot stop: why; hint: do this", "{status:?}");
    assert_eq!(model.key(Key::Char('p')), action(Change::Pause));
    model.finished(&id, Ok("paused `train`".into()));
    let mut paused = snapshot();
    paused.containers[0].paused = true;
    model.update(paused);
    assert_eq!(model.key(Key::Char('p')), action(Change::Resume));
    model.finished(&id, Ok(String::new()));
    model.key(Key::Char('u'));
    type_text(&mut model, "--cpus 2q");
    model.key(Key::Backspace);
    assert_eq!(model.key(Key::Enter), action(Change::Update("--cpus 2".into())));
    model.finished(&id, Ok("updated `train`".into()));
    assert_eq!(model.status.as_ref().unwrap().text, "updated `train`");
    // Nothing typed changes nothing.
    model.key(Key::Char('u'));
    assert_eq!((model.key(Key::Enter), &model.mode), (None, &Mode::Table));
}
