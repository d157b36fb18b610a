//! Splits a template into text and the tokens of its actions.

use super::TemplateError;

/// A piece of a template.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Piece {
    Text(String),
    /// The tokens between `{{` and `}}`.
    Action(Vec<Token>),
}

/// A token, and whether a blank precedes it: `.a .b` are two fields, `.a.b` is one.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Token {
    pub kind: Kind,
    pub spaced: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Kind {
    /// `.` alone.
    Dot,
    /// `.Name`.
    Field(String),
    /// `$` or `$name`, without the `$`.
    Variable(String),
    /// A keyword or the name of a function.
    Word(String),
    Text(String),
    Int(i128),
    Float(f64),
    Open,
    Close,
    Pipe,
    Comma,
    /// `:=`
    Declare,
    /// `=`
    Assign,
}

fn wrong(why: impl Into<String>) -> TemplateError {
    TemplateError::Syntax(why.into())
}

pub(super) fn pieces(text: &str) -> Result<Vec<Piece>, TemplateError> {
    let mut pieces = Vec::new();
    let mut rest = text;
    let mut trim = false;
    while let Some(at) = rest.find("{{") {
        let (before, after) = rest.split_at(at);
        let after = &after[2..];
        let trims_before = after.starts_with('-') && after[1..].starts_with(char::is_whitespace);
        let inner = if trims_before { &after[1..] } else { after };
        let mut before = if trim { before.trim_start() } else { before };
        if trims_before {
            before = before.trim_end();
        }
        if !before.is_empty() {
            pieces.push(Piece::Text(before.to_owned()));
        }
        let comment = inner.trim_start();
        let end = if comment.starts_with("/*") {
            let end = comment.find("*/").ok_or_else(|| wrong("a comment has no end"))? + 2;
            let rest = &comment[end..];
            let close = rest.find("}}").ok_or_else(|| wrong("`{{` without `}}`"))?;
            if !matches!(rest[..close].trim(), "" | "-") {
                return Err(wrong("a comment is followed by something else"));
            }
            inner.len() - comment.len() + end + close
        } else {
            end_of_action(inner)?
        };
        let body = &inner[..end];
        trim = body.ends_with('-') && (body.len() == 1 || body[..body.len() - 1].ends_with(char::is_whitespace));
        let body = if trim { &body[..body.len() - 1] } else { body };
        if !comment.starts_with("/*") {
            pieces.push(Piece::Action(tokens(body)?));
        }
        rest = &inner[end + 2..];
    }
    let rest = if trim { rest.trim_start() } else { rest };
    if !rest.is_empty() {
        pieces.push(Piece::Text(rest.to_owned()));
    }
    Ok(pieces)
}

/// Finds the `}}` that ends an action. A `}}` in a literal does not.
fn end_of_action(text: &str) -> Result<usize, TemplateError> {
    let mut quote: Option<char> = None;
    let mut escaped = false;
    for (at, letter) in text.char_indices() {
        match quote {
            Some(_) if escaped => escaped = false,
            Some(mark) if letter == '\\' && mark != '`' => escaped = true,
            Some(mark) if letter == mark => quote = None,
            Some(_) => {}
            None if matches!(letter, '"' | '\'' | '`') => quote = Some(letter),
            None if text[at..].starts_with("}}") => return Ok(at),
            None => {}
        }
    }
    Err(wrong("`{{` without `}}`"))
}

fn is_name(letter: char) -> bool {
    letter == '_' || letter.is_alphanumeric()
}

fn tokens(text: &str) -> Result<Vec<Token>, TemplateError> {
    let mut tokens = Vec::new();
    let mut rest = text;
    let mut spaced = true;
    while let Some(letter) = rest.chars().next() {
        if letter.is_whitespace() {
            rest = &rest[letter.len_utf8()..];
            spaced = true;
            continue;
        }
        let (kind, length) = token(rest, letter)?;
        tokens.push(Token { kind, spaced });
        rest = &rest[length..];
        spaced = false;
    }
    Ok(tokens)
}

fn token(rest: &str, letter: char) -> Result<(Kind, usize), TemplateError> {
    let name = |from: usize| {
        let name = &rest[from..];
        let end = name.find(|letter| !is_name(letter)).unwrap_or(name.len());
        name[..end].to_owned()
    };
    let is_number = |text: &str| text.starts_with(|letter: char| letter.is_ascii_digit());
    Ok(match letter {
        '(' => (Kind::Open, 1),
        ')' => (Kind::Close, 1),
        '|' => (Kind::Pipe, 1),
        ',' => (Kind::Comma, 1),
        ':' if rest.starts_with(":=") => (Kind::Declare, 2),
        '=' => (Kind::Assign, 1),
        '$' => {
            let name = name(1);
            let length = 1 + name.len();
            (Kind::Variable(name), length)
        }
        '"' | '`' | '\'' => literal(rest, letter)?,
        '.' if !is_number(&rest[1..]) => {
            let name = name(1);
            let length = 1 + name.len();
            if name.is_empty() { (Kind::Dot, 1) } else { (Kind::Field(name), length) }
        }
        '+' | '-' | '.' => number(rest)?,
        letter if letter.is_ascii_digit() => number(rest)?,
        letter if is_name(letter) => {
            let name = name(0);
            let length = name.len();
            (Kind::Word(name), length)
        }
        other => return Err(wrong(format!("unexpected `{other}`"))),
    })
}

fn number(rest: &str) -> Result<(Kind, usize), TemplateError> {
    let is_part = |(at, letter): &(usize, char)| {
        letter.is_ascii_alphanumeric()
            || matches!(letter, '.' | '_')
            || (matches!(letter, '+' | '-') && (*at == 0 || rest[..*at].ends_with(['e', 'E'])))
    };
    let length = rest.char_indices().take_while(is_part).map(|(at, letter)| at + letter.len_utf8()).last().unwrap_or(0);
    let text: String = rest[..length].chars().filter(|letter| *letter != '_').collect();
    let bad = || wrong(format!("`{}` is not a number", &rest[..length.max(1).min(rest.len())]));
    let (sign, digits) = match text.strip_prefix(['+', '-']) {
        Some(digits) => (if text.starts_with('-') { -1 } else { 1 }, digits),
        None => (1, text.as_str()),
    };
    let whole = match digits.get(..2).map(str::to_ascii_lowercase).as_deref() {
        Some("0x") => i128::from_str_radix(&digits[2..], 16).ok(),
        Some("0o") => i128::from_str_radix(&digits[2..], 8).ok(),
        Some("0b") => i128::from_str_radix(&digits[2..], 2).ok(),
        _ => digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok()).flatten(),
    };
    if let Some(number) = whole {
        return Ok((Kind::Int(sign * number), length));
    }
    let is_plain = digits.bytes().all(|byte| byte.is_ascii_digit() || b".eE+-".contains(&byte));
    let number = if is_plain { text.parse::<f64>().ok() } else { None };
    number.filter(|number| number.is_finite()).map(|number| (Kind::Float(number), length)).ok_or_else(bad)
}

/// Reads a text in double quotes or backquotes, or a character in single quotes, which is a number.
fn literal(rest: &str, mark: char) -> Result<(Kind, usize), TemplateError> {
    let mut text = String::new();
    let mut letters = rest.char_indices().skip(1);
    while let Some((at, letter)) = letters.next() {
        if letter == mark {
            let length = at + 1;
            if mark != '\'' {
                return Ok((Kind::Text(text), length));
            }
            let mut letters = text.chars();
            return match (letters.next(), letters.next()) {
                (Some(one), None) => Ok((Kind::Int(i128::from(u32::from(one))), length)),
                _ => Err(wrong("a character in single quotes is one character")),
            };
        }
        if letter != '\\' || mark == '`' {
            text.push(letter);
            continue;
        }
        let escaped = letters.next().map(|(_, letter)| letter);
        let mut hex = |digits: usize| {
            let code: String = letters.by_ref().take(digits).map(|(_, letter)| letter).collect();
            let number = u32::from_str_radix(&code, 16).ok().filter(|_| code.len() == digits);
            number.and_then(char::from_u32).ok_or_else(|| wrong(format!("`\\{code}` is not a character")))
        };
        text.push(match escaped {
            Some('n') => '\n',
            Some('t') => '\t',
            Some('r') => '\r',
            Some('a') => '\x07',
            Some('b') => '\x08',
            Some('f') => '\x0c',
            Some('v') => '\x0b',
            Some('x') => hex(2)?,
            Some('u') => hex(4)?,
            Some('U') => hex(8)?,
            Some(letter @ ('\\' | '"' | '\'')) => letter,
            other => return Err(wrong(format!("unknown escape `\\{}`", other.map_or(String::new(), String::from)))),
        });
    }
    Err(wrong(format!("a literal has no closing {mark}")))
}
