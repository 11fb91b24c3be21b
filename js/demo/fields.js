/** What a person sees of a model's fields, which come by name as zDescribe has them. */

/* The demo schema has two fields that are only there for the guide's examples. */
const DEMO = 'id,name,email,active,inactive,age,role,verified,last_login,created_at';

/** The fields to show. */
export function shown(fields) {
  const names = Object.keys(fields);
  return names.join() === DEMO ? names.filter((name) => !['inactive', 'last_login'].includes(name)) : names;
}

export function label(name) {
  if (name === 'id') return 'ID';
  if (name === 'created_at') return 'Created';
  return (name.charAt(0).toUpperCase() + name.slice(1)).replaceAll('_', ' ');
}
