//! Evaluates a template.

use super::parse::{Base, Node, Operand, Pipeline};
use super::{TemplateError, Value, functions};

/// What follows after a node.
#[derive(PartialEq)]
enum Next {
    Go,
    Break,
    Continue,
}

pub(super) fn render(nodes: &[Node], data: &Value) -> Result<String, TemplateError> {
    let mut renderer = Renderer { out: String::new(), variables: vec![(String::new(), data.clone())] };
    renderer.nodes(nodes, data)?;
    Ok(renderer.out)
}

struct Renderer {
    out: String,
    /// The innermost scope is last. The first one is `$`.
    variables: Vec<(String, Value)>,
}

impl Renderer {
    fn nodes(&mut self, nodes: &[Node], dot: &Value) -> Result<Next, TemplateError> {
        for node in nodes {
            let next = match node {
                Node::Text(text) => {
                    self.out.push_str(text);
                    Next::Go
                }
                Node::Print(pipeline) => {
                    let value = self.pipeline(pipeline, dot)?;
                    if pipeline.variables.is_empty() {
                        value.write(&mut self.out);
                    }
                    Next::Go
                }
                Node::If(branches, otherwise) => self.branches(branches, otherwise, dot)?,
                Node::With(pipeline, body, otherwise) => {
                    let scope = self.variables.len();
                    let value = self.pipeline(pipeline, dot)?;
                    let next = match value.is_true() {
                        true => self.nodes(body, &value)?,
                        false => self.nodes(otherwise, dot)?,
                    };
                    self.variables.truncate(scope);
                    next
                }
                Node::Range(pipeline, body, otherwise) => self.range(pipeline, body, otherwise, dot)?,
                Node::Break => Next::Break,
                Node::Continue => Next::Continue,
            };
            if next != Next::Go {
                return Ok(next);
            }
        }
        Ok(Next::Go)
    }

    fn branches(
        &mut self,
        branches: &[(Pipeline, Vec<Node>)],
        otherwise: &[Node],
        dot: &Value,
    ) -> Result<Next, TemplateError> {
        let scope = self.variables.len();
        for (condition, body) in branches {
            if self.pipeline(condition, dot)?.is_true() {
                let next = self.nodes(body, dot)?;
                self.variables.truncate(scope);
                return Ok(next);
            }
        }
        let next = self.nodes(otherwise, dot)?;
        self.variables.truncate(scope);
        Ok(next)
    }

    fn range(
        &mut self,
        pipeline: &Pipeline,
        body: &[Node],
        otherwise: &[Node],
        dot: &Value,
    ) -> Result<Next, TemplateError> {
        let scope = self.variables.len();
        let items: Vec<(Value, Value)> = match self.value(pipeline, dot)? {
            Value::List(items) => {
                items.into_iter().enumerate().map(|(at, item)| (Value::Int(at as i128), item)).collect()
            }
            Value::Map(fields) | Value::Fields(fields) => {
                fields.into_iter().map(|(key, value)| (Value::Text(key), value)).collect()
            }
            Value::Nil => Vec::new(),
            other => return Err(failed(pipeline, format!("cannot go through {}", other.kind()))),
        };
        if items.is_empty() {
            return self.nodes(otherwise, dot);
        }
        for (key, item) in items {
            match &pipeline.variables[..] {
                [] => {}
                [one] => self.set(one, item.clone(), pipeline)?,
                [first, second, ..] => {
                    self.set(first, key, pipeline)?;
                    self.set(second, item.clone(), pipeline)?;
                }
            }
            let next = self.nodes(body, &item)?;
            self.variables.truncate(scope);
            if next == Next::Break {
                break;
            }
        }
        Ok(Next::Go)
    }

    fn set(&mut self, name: &str, value: Value, pipeline: &Pipeline) -> Result<(), TemplateError> {
        if pipeline.declares {
            self.variables.push((name.to_owned(), value));
            return Ok(());
        }
        match self.variables.iter_mut().rev().find(|(known, _)| known == name) {
            Some((_, slot)) => *slot = value,
            None => return Err(failed(pipeline, format!("there is no variable `${name}`"))),
        }
        Ok(())
    }

    fn pipeline(&mut self, pipeline: &Pipeline, dot: &Value) -> Result<Value, TemplateError> {
        let value = self.value(pipeline, dot)?;
        if let [name] = &pipeline.variables[..] {
            self.set(name, value.clone(), pipeline)?;
        }
        Ok(value)
    }

    /// The value of a pipeline: each command has the value before it as its last argument.
    fn value(&self, pipeline: &Pipeline, dot: &Value) -> Result<Value, TemplateError> {
        let mut value = None;
        for command in &pipeline.commands {
            value = Some(self.command(command, value, dot, pipeline)?);
        }
        Ok(value.unwrap_or(Value::Nil))
    }

    fn command(
        &self,
        command: &[Operand],
        piped: Option<Value>,
        dot: &Value,
        pipeline: &Pipeline,
    ) -> Result<Value, TemplateError> {
        let (first, rest) = (&command[0], &command[1..]);
        if let Base::Function(name) = &first.base {
            if name == "and" || name == "or" {
                return self.either(name == "or", rest, piped, dot, pipeline);
            }
            let mut args = rest.iter().map(|arg| self.operand(arg, dot, pipeline)).collect::<Result<Vec<_>, _>>()?;
            args.extend(piped);
            return functions::call(name, &args).map_err(|why| failed(pipeline, why));
        }
        let value = self.operand(first, dot, pipeline)?;
        let mut args = rest.iter().map(|arg| self.operand(arg, dot, pipeline)).collect::<Result<Vec<_>, _>>()?;
        args.extend(piped);
        match (value, &args[..]) {
            (Value::Lookup(fields), [Value::Text(key)]) => {
                Ok(Value::Text(fields.get(key).cloned().unwrap_or_default()))
            }
            (Value::Lookup(_), _) => Err(failed(pipeline, "it takes one text")),
            (value, []) => Ok(value),
            (value, _) => Err(failed(pipeline, format!("{} takes no arguments", value.kind()))),
        }
    }

    /// `and` and `or`: the first value that decides, or the last one.
    fn either(
        &self,
        wanted: bool,
        args: &[Operand],
        piped: Option<Value>,
        dot: &Value,
        pipeline: &Pipeline,
    ) -> Result<Value, TemplateError> {
        let mut last = None;
        for arg in args {
            let value = self.operand(arg, dot, pipeline)?;
            if value.is_true() == wanted {
                return Ok(value);
            }
            last = Some(value);
        }
        piped.or(last).ok_or_else(|| failed(pipeline, "it takes at least 1 argument"))
    }

    fn operand(&self, operand: &Operand, dot: &Value, pipeline: &Pipeline) -> Result<Value, TemplateError> {
        let owned;
        let base = match &operand.base {
            Base::Value(value) => value,
            Base::Dot => dot,
            Base::Variable(name) => {
                let found = self.variables.iter().rev().find(|(known, _)| known == name);
                let missing = || failed(pipeline, format!("there is no variable `${name}`"));
                &found.ok_or_else(missing)?.1
            }
            Base::Group(inner) => {
                owned = self.value(inner, dot)?;
                &owned
            }
            Base::Function(name) => {
                owned = functions::call(name, &[]).map_err(|why| failed(pipeline, why))?;
                &owned
            }
        };
        let mut value = base;
        let mut missing = false;
        for name in &operand.fields {
            value = match value {
                _ if missing => return Err(failed(pipeline, format!("there is no value with a field `{name}`"))),
                Value::Map(fields) => fields.get(name).unwrap_or_else(|| {
                    missing = true;
                    &Value::Nil
                }),
                Value::Fields(fields) => {
                    // docker's objects have the field `ID`, which is `Id` in their JSON, and templates know both.
                    let found = fields.get(name).or_else(|| if name == "ID" { fields.get("Id") } else { None });
                    found.ok_or_else(|| failed(pipeline, format!("there is no field `{name}`")))?
                }
                Value::Nil => return Err(failed(pipeline, format!("there is no value with a field `{name}`"))),
                other => return Err(failed(pipeline, format!("{} has no field `{name}`", other.kind()))),
            };
        }
        Ok(value.clone())
    }
}

fn failed(pipeline: &Pipeline, why: impl Into<String>) -> TemplateError {
    TemplateError::Render { at: pipeline.shown.clone(), why: why.into() }
}
