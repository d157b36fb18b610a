//! The modes of the terminal: the alternate screen, keys without echo, and the redirected standard error.
//!
//! Whatever ends or stops the screen (a return, a signal, a panic in any thread), [`restore`] leaves the terminal as it
//! was. While the screen is open, standard error is a pipe: its lines are shown on the screen instead of in it.

use std::cell::Cell;
use std::io::{self, IsTerminal, Read, Stdout};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, Once, PoisonError};

use nix::sys::signal::{SigSet, Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::{Hide, Show};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{EnterAlternateScreen, LeaveAlternateScreen};
use ratatui::{Frame, Terminal};

use crate::report::Report;
use crate::sys::tty::TerminalMode;

/// What is restored: the mode of the terminal, and standard error if it was redirected.
struct Saved {
    mode: TerminalMode,
    stderr: Option<OwnedFd>,
}

static SAVED: Mutex<Option<Saved>> = Mutex::new(None);
/// Held by the thread that writes to the terminal, so that a panic in another one does not restore it in the middle.
static OUTPUT: Mutex<()> = Mutex::new(());
static HOOK: Once = Once::new();

thread_local! {
    /// Whether this thread holds [`OUTPUT`] already: it panics while it draws.
    static WRITES: Cell<bool> = const { Cell::new(false) };
}

/// Restores the terminal if the screen is open. Errors are ignored, because a terminal that no longer exists needs no
/// mode.
fn restore() {
    let _output = (!WRITES.get()).then(|| OUTPUT.lock().unwrap_or_else(PoisonError::into_inner));
    let Some(saved) = SAVED.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
    let _ = execute!(io::stdout(), Show, LeaveAlternateScreen);
    drop(saved.mode);
    if let Some(stderr) = saved.stderr {
        let _ = nix::unistd::dup2_stderr(stderr);
    }
}

/// The open screen. Dropping it restores the terminal.
pub(super) struct Screen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
    /// The other end of standard error, as long as that is redirected.
    notes: Option<io::PipeReader>,
}

impl Screen {
    pub(super) fn open() -> Result<Self, Report> {
        let failed = |error: io::Error| Report::new("cannot use the terminal").with_cause(error);
        // The hook prints the panic's message, so the terminal is restored before.
        HOOK.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                restore();
                before(info);
            }));
        });
        let terminal = Terminal::new(CrosstermBackend::new(io::stdout())).map_err(failed)?;
        let mut screen = Self { terminal, notes: None };
        screen.enter().map_err(failed)?;
        Ok(screen)
    }

    fn enter(&mut self) -> io::Result<()> {
        let mode = TerminalMode::keys(io::stdin())?;
        *SAVED.lock().unwrap_or_else(PoisonError::into_inner) = Some(Saved { mode, stderr: None });
        self.write(|_| execute!(io::stdout(), EnterAlternateScreen, Hide))?;
        self.redirect_errors()?;
        self.write(Terminal::clear)
    }

    /// Shows a frame.
    pub(super) fn draw(&mut self, render: impl FnOnce(&mut Frame)) -> io::Result<()> {
        self.write(|terminal| terminal.draw(render).map(drop))
    }

    /// Removes everything from the screen. The next frame is drawn as a whole.
    pub(super) fn clear(&mut self) -> io::Result<()> {
        self.write(Terminal::clear)
    }

    /// Writes to the terminal, unless a panic in another thread has restored it: then it shows that panic's message.
    fn write(&mut self, act: impl FnOnce(&mut Terminal<CrosstermBackend<Stdout>>) -> io::Result<()>) -> io::Result<()> {
        let _output = OUTPUT.lock().unwrap_or_else(PoisonError::into_inner);
        if SAVED.lock().unwrap_or_else(PoisonError::into_inner).is_none() {
            return Ok(());
        }
        WRITES.set(true);
        let written = act(&mut self.terminal);
        WRITES.set(false);
        written
    }

    /// Puts standard error on a pipe, unless the caller has redirected it.
    fn redirect_errors(&mut self) -> io::Result<()> {
        if !io::stderr().is_terminal() {
            return Ok(());
        }
        let (reader, writer) = io::pipe()?;
        crate::sys::process::set_nonblocking(&reader)?;
        let stderr = io::stderr().as_fd().try_clone_to_owned()?;
        nix::unistd::dup2_stderr(writer)?;
        self.notes = Some(reader);
        if let Some(saved) = SAVED.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            saved.stderr = Some(stderr);
        }
        Ok(())
    }

    /// Restores the terminal and sets it up again, after another program may have changed it.
    pub(super) fn enter_again(&mut self) -> Result<(), Report> {
        restore();
        self.notes = None;
        self.enter().map_err(|error| Report::new("cannot use the terminal").with_cause(error))
    }

    /// Stops this process as ctrl-z does. Returns when it continues, with the terminal set up again.
    pub(super) fn suspend(&mut self, signals: &SignalFd) -> Result<(), Report> {
        restore();
        let stop = SigSet::from(Signal::SIGTSTP);
        let failed = |errno: nix::Error| Report::new("cannot stop this process").with_cause(errno);
        stop.thread_unblock()
            .and_then(|()| raise(Signal::SIGTSTP))
            .and_then(|()| stop.thread_block())
            .map_err(failed)?;
        // The SIGCONT that has just arrived asks for nothing more.
        while let Ok(Some(info)) = signals.read_signal() {
            if info.ssi_signo as i32 != Signal::SIGCONT as i32 {
                let _ = Signal::try_from(info.ssi_signo as i32).and_then(raise);
                break;
            }
        }
        self.notes = None;
        self.enter().map_err(|error| Report::new("cannot use the terminal").with_cause(error))
    }

    /// The descriptor that is readable when something was written to standard error.
    pub(super) fn notes(&self) -> Option<BorrowedFd<'_>> {
        self.notes.as_ref().map(AsFd::as_fd)
    }

    /// Reads what was written to standard error.
    pub(super) fn read_notes(&mut self) -> String {
        let mut bytes = vec![0; 64 << 10];
        let count = self.notes.as_mut().and_then(|notes| notes.read(&mut bytes).ok()).unwrap_or(0);
        String::from_utf8_lossy(&bytes[..count]).trim().to_owned()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        restore();
    }
}

/// Blocks the signals that end, stop, continue or resize the screen, for this thread and those that it starts. They
/// arrive by the descriptor.
pub(super) fn take_signals() -> Result<SignalFd, Report> {
    let all = [
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGQUIT,
        Signal::SIGTSTP,
        Signal::SIGCONT,
        Signal::SIGWINCH,
    ];
    let set: SigSet = all.into_iter().collect();
    set.thread_block()
        .and_then(|()| SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK))
        .map_err(|errno| Report::new("cannot take signals by descriptor").with_cause(errno))
}
