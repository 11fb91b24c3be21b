/** What a person sees of a model's fields, which come by name as zDescribe has them. */

/** The fields to show. The demo schema has two that are only there for the guide's examples. */
export function shown(fields) {
  const demo = 'active' in fields && 'inactive' in fields;
  return Object.keys(fields).filter((name) => !(demo && ['inactive', 'last_login'].includes(name)));
}

export function label(name) {
  if (name === 'id') return 'ID';
  if (name === 'created_at') return 'Created';
  return (name.charAt(0).toUpperCase() + name.slice(1)).replaceAll('_', ' ');
}
