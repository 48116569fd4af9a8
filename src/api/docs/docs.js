// Shows the description of the API. All text goes in as text, never as markup.
'use strict';

const METHODS = ['get', 'post', 'put', 'patch', 'delete'];

function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) element.setAttribute(name, value);
  element.append(...children.filter((child) => child !== undefined && child !== null));
  return element;
}

/** Paragraphs of a text, with `code` in backquotes. */
function prose(text) {
  return (text ?? '').split(/\n\s*\n/).filter(Boolean).map((paragraph) => {
    const pieces = paragraph.split('`');
    return make('p', {}, ...pieces.map((piece, n) => (n % 2 ? make('code', {}, piece) : piece)));
  });
}

class Description {
  constructor(document) {
    this.document = document;
  }

  resolve(schema) {
    const name = schema?.$ref?.split('/').pop();
    return name ? this.document.components.schemas[name] : (schema ?? {});
  }

  /** The type of a schema in one line. */
  type(schema) {
    if (schema?.$ref) return schema.$ref.split('/').pop();
    const either = schema?.oneOf ?? schema?.anyOf;
    if (either) return either.map((one) => this.type(one)).join(' or ');
    if (schema?.enum) return schema.enum.map((value) => JSON.stringify(value)).join(' or ');
    const types = [schema?.type ?? 'anything'].flat();
    return types.map((type) => {
      if (type === 'array') return `list of ${this.type(schema.items)}`;
      if (type === 'object' && schema.additionalProperties) {
        return `map to ${this.type(schema.additionalProperties)}`;
      }
      return schema.format ? `${type} (${schema.format})` : type;
    }).join(' or ');
  }

  /** An example value, as far as the schema tells one. */
  example(schema, depth = 0) {
    if (schema?.example !== undefined) return schema.example;
    const resolved = this.resolve(schema);
    if (resolved.example !== undefined) return resolved.example;
    const either = resolved.oneOf ?? resolved.anyOf;
    if (either) return this.example(either.find((one) => one.type !== 'null') ?? {}, depth);
    if (resolved.enum) return resolved.enum[0];
    const type = [resolved.type].flat().find((one) => one !== 'null');
    if (depth > 4) return null;
    if (type === 'array') return [this.example(resolved.items, depth + 1)];
    if (type === 'object' || resolved.properties) {
      const fields = Object.entries(resolved.properties ?? {});
      return Object.fromEntries(fields.map(([name, field]) => [name, this.example(field, depth + 1)]));
    }
    if (type === 'string') return resolved.format === 'date-time' ? '2026-01-31T12:00:00Z' : '…';
    if (type === 'integer' || type === 'number') return resolved.minimum ?? 1;
    if (type === 'boolean') return true;
    return null;
  }

  limits(schema) {
    const said = [];
    const say = (name, text) => {
      if (schema?.[name] !== undefined) said.push(`${text} ${schema[name]}`);
    };
    say('minLength', 'at least'); say('maxLength', 'at most'); say('minimum', 'from');
    say('maximum', 'to'); say('pattern', 'matches'); say('default', 'default');
    return said.join(', ');
  }

  table(rows) {
    const head = make('tr', {}, ...['Name', 'Type', ''].map((text) => make('th', { scope: 'col' }, text)));
    const lines = rows.map(({ name, schema, required, where, description }) => make('tr', {},
      make('td', {}, make('code', {}, name), required ? ' (required)' : ''),
      make('td', {}, this.type(schema)),
      make('td', {}, ...prose(description), ...prose([where, this.limits(schema)].filter(Boolean).join('; ')))));
    return make('div', { class: 'scroll' }, make('table', {}, make('thead', {}, head), make('tbody', {}, ...lines)));
  }

  fields(schema) {
    const { properties = {}, required = [] } = this.resolve(schema);
    return Object.entries(properties).map(([name, field]) => ({
      name, schema: field, required: required.includes(name), description: field.description,
    }));
  }

  operation(path, method, operation) {
    const body = make('div', {}, ...prose(operation.description));
    const parameters = operation.parameters ?? [];
    if (parameters.length) {
      body.append(make('h3', {}, 'Parameters'), this.table(parameters.map((parameter) => ({
        ...parameter, where: `in the ${parameter.in}`,
      }))));
    }
    const contents = Object.entries(operation.requestBody?.content ?? {});
    if (contents.length) {
      const [, { schema }] = contents[0];
      body.append(
        make('h3', {}, 'Body'), make('p', { class: 'quiet' }, contents.map(([kind]) => kind).join(' or ')),
        this.table(this.fields(schema)),
        make('pre', {}, JSON.stringify(this.example(schema), null, 2)));
    }
    body.append(make('h3', {}, 'Answers'));
    const answers = Object.entries(operation.responses ?? {});
    body.append(this.table(answers.map(([status, answer]) => ({
      name: status,
      schema: Object.values(answer.content ?? {})[0]?.schema ?? { type: 'nothing' },
      description: answer.description,
      where: Object.keys(answer.headers ?? {}).map((name) => `with ${name}`).join(', '),
    }))));
    const id = operation.operationId;
    return make('details', { id },
      make('summary', {}, make('span', { class: `method ${method}` }, method.toUpperCase()),
        make('code', {}, path), make('span', { class: 'quiet' }, operation.summary ?? '')),
      body);
  }

  schema(name) {
    const schema = { $ref: `#/components/schemas/${name}` };
    const resolved = this.resolve(schema);
    const content = resolved.properties
      ? [this.table(this.fields(schema)), make('pre', {}, JSON.stringify(this.example(schema), null, 2))]
      : prose(this.type(resolved));
    return make('details', { id: `schema-${name}` },
      make('summary', {}, make('code', {}, name)),
      make('div', {}, ...prose(resolved.description), ...content));
  }

  show(into) {
    const { info, paths, tags = [], components = {} } = this.document;
    document.title = `${info.title} ${info.version}: the API`;
    document.querySelector('h1').textContent = `${info.title} ${info.version}`;
    document.getElementById('about').replaceWith(...prose(info.description));
    for (const tag of tags) {
      const operations = Object.entries(paths).flatMap(([path, item]) => METHODS
        .filter((method) => item[method]?.tags?.includes(tag.name))
        .map((method) => this.operation(path, method, item[method])));
      into.append(make('h2', {}, tag.name), ...prose(tag.description), ...operations);
    }
    into.append(make('h2', {}, 'Schemas'), ...Object.keys(components.schemas ?? {}).map((name) => this.schema(name)));
    const open = () => {
      const named = document.getElementById(decodeURIComponent(location.hash.slice(1)));
      if (named instanceof HTMLDetailsElement) {
        named.open = true;
        named.scrollIntoView();
      }
    };
    addEventListener('hashchange', open);
    open();
  }
}

fetch('openapi.json')
  .then((answer) => (answer.ok ? answer.json() : Promise.reject(new Error(`status ${answer.status}`))))
  .then((document_) => new Description(document_).show(document.getElementById('operations')))
  .catch((error) => {
    document.getElementById('about').textContent = `The description cannot be shown: ${error.message}`;
  });
