//! The grammar of templates.

use super::lex::{Kind, Piece, Token, pieces};
use super::{TemplateError, Value, functions};

/// Maximum nesting of blocks and parentheses.
const DEPTH: usize = 64;

#[derive(Debug, Clone)]
pub(super) enum Node {
    Text(String),
    Print(Pipeline),
    /// `{{if}}` and its `{{else if}}`s, and `{{else}}`.
    If(Vec<(Pipeline, Vec<Node>)>, Vec<Node>),
    Range(Pipeline, Vec<Node>, Vec<Node>),
    With(Pipeline, Vec<Node>, Vec<Node>),
    Break,
    Continue,
}

#[derive(Debug, Clone)]
pub(super) struct Pipeline {
    /// The variables that it sets, and whether they are new ones.
    pub variables: Vec<String>,
    pub declares: bool,
    pub commands: Vec<Vec<Operand>>,
    /// As written, for messages.
    pub shown: String,
}

/// An operand, and the fields that follow it.
#[derive(Debug, Clone)]
pub(super) struct Operand {
    pub base: Base,
    pub fields: Vec<String>,
}

#[derive(Debug, Clone)]
pub(super) enum Base {
    Value(Value),
    Dot,
    Variable(String),
    Group(Box<Pipeline>),
    Function(String),
}

fn wrong(why: impl Into<String>) -> TemplateError {
    TemplateError::Syntax(why.into())
}

pub(super) fn parse(text: &str) -> Result<Vec<Node>, TemplateError> {
    let pieces = pieces(text)?;
    let mut parser = Parser { pieces: pieces.into_iter(), depth: 0, loops: 0 };
    let (nodes, end) = parser.block()?;
    match end {
        Closed::Template => Ok(nodes),
        Closed::Block => Err(wrong("`{{end}}` without a block")),
        Closed::Else(_) => Err(wrong("`{{else}}` without a block")),
    }
}

struct Parser {
    pieces: std::vec::IntoIter<Piece>,
    depth: usize,
    loops: usize,
}

/// What ended a block.
enum Closed {
    /// The end of the text.
    Template,
    /// `{{end}}`.
    Block,
    /// The tokens after `else`.
    Else(Vec<Token>),
}

impl Parser {
    fn block(&mut self) -> Result<(Vec<Node>, Closed), TemplateError> {
        let mut nodes = Vec::new();
        while let Some(piece) = self.pieces.next() {
            let tokens = match piece {
                Piece::Text(text) => {
                    nodes.push(Node::Text(text));
                    continue;
                }
                Piece::Action(tokens) => tokens,
            };
            let word = match tokens.first().map(|token| &token.kind) {
                Some(Kind::Word(word)) => word.as_str(),
                _ => "",
            };
            nodes.push(match word {
                "end" if tokens.len() == 1 => return Ok((nodes, Closed::Block)),
                "else" => return Ok((nodes, Closed::Else(tokens[1..].to_vec()))),
                "if" => self.branches(&tokens[1..])?,
                "range" => {
                    self.loops += 1;
                    let (pipeline, body) = (pipeline(&tokens[1..], 2)?, self.enter()?);
                    self.loops -= 1;
                    let otherwise = self.otherwise(&body.1)?;
                    Node::Range(pipeline, body.0, otherwise)
                }
                "with" => {
                    let (pipeline, body) = (pipeline(&tokens[1..], 1)?, self.enter()?);
                    let otherwise = self.otherwise(&body.1)?;
                    Node::With(pipeline, body.0, otherwise)
                }
                "break" | "continue" if tokens.len() == 1 => {
                    if self.loops == 0 {
                        return Err(wrong(format!("`{{{{{word}}}}}` is not in a `{{{{range}}}}`")));
                    }
                    if word == "break" { Node::Break } else { Node::Continue }
                }
                "define" | "template" | "block" => {
                    return Err(wrong(format!("named templates (`{word}`) are not supported")));
                }
                _ => Node::Print(pipeline(&tokens, 1)?),
            });
        }
        Ok((nodes, Closed::Template))
    }

    fn enter(&mut self) -> Result<(Vec<Node>, Closed), TemplateError> {
        self.depth += 1;
        if self.depth > DEPTH {
            return Err(wrong("it is nested too deeply"));
        }
        let block = self.block()?;
        self.depth -= 1;
        Ok(block)
    }

    fn branches(&mut self, tokens: &[Token]) -> Result<Node, TemplateError> {
        let mut branches = Vec::new();
        let mut condition = pipeline(tokens, 1)?;
        loop {
            let (body, end) = self.enter()?;
            branches.push((condition, body));
            match end {
                Closed::Else(rest) if matches!(&rest[..], [Token { kind: Kind::Word(word), .. }, ..] if word == "if") =>
                {
                    condition = pipeline(&rest[1..], 1)?;
                }
                end => {
                    let otherwise = self.otherwise(&end)?;
                    return Ok(Node::If(branches, otherwise));
                }
            }
        }
    }

    /// Reads the block after a plain `{{else}}`, if that is what ended the block before.
    fn otherwise(&mut self, end: &Closed) -> Result<Vec<Node>, TemplateError> {
        match end {
            Closed::Block => Ok(Vec::new()),
            Closed::Template => Err(wrong("a block has no `{{end}}`")),
            Closed::Else(rest) if !rest.is_empty() => Err(wrong("`{{else}}` is followed by something else")),
            Closed::Else(_) => match self.enter()? {
                (nodes, Closed::Block) => Ok(nodes),
                (_, Closed::Template) => Err(wrong("a block has no `{{end}}`")),
                (_, Closed::Else(_)) => Err(wrong("a block has two `{{else}}`")),
            },
        }
    }
}

fn pipeline(tokens: &[Token], variables: usize) -> Result<Pipeline, TemplateError> {
    let mut at = 0;
    let pipeline = read_pipeline(tokens, &mut at, variables, 0)?;
    match tokens.get(at) {
        None => Ok(pipeline),
        Some(token) => Err(wrong(format!("unexpected `{}`", shown(&token.kind)))),
    }
}

fn read_pipeline(tokens: &[Token], at: &mut usize, most: usize, depth: usize) -> Result<Pipeline, TemplateError> {
    if depth > DEPTH {
        return Err(wrong("it is nested too deeply"));
    }
    let begin = *at;
    let (variables, declares) = read_variables(tokens, at, most)?;
    let mut commands = Vec::new();
    loop {
        let command = read_command(tokens, at, depth)?;
        if command.is_empty() {
            return Err(wrong(if commands.is_empty() { "an action is empty" } else { "nothing follows `|`" }));
        }
        if !commands.is_empty() && !is_call(&command[0]) {
            return Err(wrong("only a function can follow `|`"));
        }
        commands.push(command);
        match tokens.get(*at).map(|token| &token.kind) {
            Some(Kind::Pipe) => *at += 1,
            _ => break,
        }
    }
    let shown = tokens[begin..*at].iter().enumerate().fold(String::new(), |text, (at, token)| {
        let blank = if at > 0 && token.spaced { " " } else { "" };
        text + blank + &shown(&token.kind)
    });
    Ok(Pipeline { variables, declares, commands, shown })
}

/// Whether an operand can take arguments: a function, or a field that is a method.
fn is_call(operand: &Operand) -> bool {
    matches!(operand.base, Base::Function(_)) || !operand.fields.is_empty()
}

/// Reads `$a :=`, `$a, $b :=` or `$a =`.
fn read_variables(tokens: &[Token], at: &mut usize, most: usize) -> Result<(Vec<String>, bool), TemplateError> {
    let mut variables = Vec::new();
    let mut next = *at;
    while let Some(Kind::Variable(name)) = tokens.get(next).map(|token| &token.kind) {
        variables.push(name.clone());
        match tokens.get(next + 1).map(|token| &token.kind) {
            Some(Kind::Comma) if variables.len() < most => next += 2,
            Some(Kind::Comma) => return Err(wrong("too many variables")),
            Some(kind @ (Kind::Declare | Kind::Assign)) => {
                if variables.iter().any(String::is_empty) {
                    return Err(wrong("`$` cannot be set"));
                }
                *at = next + 2;
                return Ok((variables, *kind == Kind::Declare));
            }
            _ => break,
        }
    }
    Ok((Vec::new(), false))
}

fn read_command(tokens: &[Token], at: &mut usize, depth: usize) -> Result<Vec<Operand>, TemplateError> {
    let mut operands: Vec<Operand> = Vec::new();
    while let Some(token) = tokens.get(*at) {
        let attaches = !token.spaced && !operands.is_empty();
        let base = match &token.kind {
            Kind::Pipe | Kind::Close => break,
            Kind::Field(name) if attaches => {
                let last = operands.last_mut().filter(|last| !matches!(last.base, Base::Function(_) | Base::Value(_)));
                last.ok_or_else(|| wrong(format!("unexpected `.{name}`")))?.fields.push(name.clone());
                *at += 1;
                continue;
            }
            _ if attaches && !matches!(token.kind, Kind::Open) => {
                return Err(wrong(format!("unexpected `{}`", shown(&token.kind))));
            }
            Kind::Dot => Base::Dot,
            Kind::Field(name) => {
                operands.push(Operand { base: Base::Dot, fields: vec![name.clone()] });
                *at += 1;
                continue;
            }
            Kind::Variable(name) => Base::Variable(name.clone()),
            Kind::Text(text) => Base::Value(Value::Text(text.clone())),
            Kind::Int(number) => Base::Value(Value::Int(*number)),
            Kind::Float(number) => Base::Value(Value::Float(*number)),
            Kind::Word(word) => match word.as_str() {
                "true" => Base::Value(Value::Bool(true)),
                "false" => Base::Value(Value::Bool(false)),
                "nil" => Base::Value(Value::Nil),
                name if functions::is_known(name) => Base::Function(name.to_owned()),
                name => return Err(wrong(format!("there is no function `{name}`"))),
            },
            Kind::Open => {
                *at += 1;
                let inner = read_pipeline(tokens, at, 0, depth + 1)?;
                if tokens.get(*at).map(|token| &token.kind) != Some(&Kind::Close) {
                    return Err(wrong("`(` without `)`"));
                }
                Base::Group(Box::new(inner))
            }
            Kind::Comma | Kind::Declare | Kind::Assign => {
                return Err(wrong(format!("unexpected `{}`", shown(&token.kind))));
            }
        };
        operands.push(Operand { base, fields: Vec::new() });
        *at += 1;
    }
    Ok(operands)
}

fn shown(kind: &Kind) -> String {
    match kind {
        Kind::Dot => ".".into(),
        Kind::Field(name) => format!(".{name}"),
        Kind::Variable(name) => format!("${name}"),
        Kind::Word(word) => word.clone(),
        Kind::Text(text) => format!("{text:?}"),
        Kind::Int(number) => number.to_string(),
        Kind::Float(number) => number.to_string(),
        Kind::Open => "(".into(),
        Kind::Close => ")".into(),
        Kind::Pipe => "|".into(),
        Kind::Comma => ",".into(),
        Kind::Declare => ":=".into(),
        Kind::Assign => "=".into(),
    }
}

/// Whether a template names a field.
pub(super) fn uses(nodes: &[Node], field: &str) -> bool {
    nodes.iter().any(|node| match node {
        Node::Text(_) | Node::Break | Node::Continue => false,
        Node::Print(pipeline) => in_pipeline(pipeline, field),
        Node::If(branches, otherwise) => {
            branches.iter().any(|(condition, body)| in_pipeline(condition, field) || uses(body, field))
                || uses(otherwise, field)
        }
        Node::Range(pipeline, body, otherwise) | Node::With(pipeline, body, otherwise) => {
            in_pipeline(pipeline, field) || uses(body, field) || uses(otherwise, field)
        }
    })
}

fn in_pipeline(pipeline: &Pipeline, field: &str) -> bool {
    pipeline.commands.iter().flatten().any(|operand| {
        let in_base = match &operand.base {
            Base::Group(inner) => in_pipeline(inner, field),
            Base::Dot | Base::Variable(_) | Base::Value(_) | Base::Function(_) => false,
        };
        in_base || operand.fields.iter().any(|name| name == field)
    })
}
