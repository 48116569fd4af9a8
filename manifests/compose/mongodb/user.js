// Run once by the image, before the set is initiated: the user of tenantry, who may use its database and no other.
db.getSiblingDB("tenantry").createUser({
  user: "tenantry",
  pwd: process.env.MONGODB_PASSWORD,
  roles: [{ role: "readWrite", db: "tenantry" }],
});
